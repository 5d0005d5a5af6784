// What a node prepares once, and scratch that an inference takes and gives back: as many pieces come into being as inferences run at once.
#pragma once

#include <mutex>

#include "operation.h"

namespace dp {

class ScratchPool {
 public:
  Buffer take(size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return Buffer(bytes);
    Buffer buffer = std::move(free_.back());
    free_.pop_back();
    if (buffer.bytes < bytes) return Buffer(bytes);
    return buffer;
  }

  void give(Buffer buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

// A layer made once, with its scratch, shared by all clones of a node.
template <class Layer, void (*destroy)(Layer*)>
struct Prepared {
  explicit Prepared(Layer* made) : layer(made) {}
  ~Prepared() { destroy(layer); }
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

  Layer* layer;
  ScratchPool pool;
};

} // namespace dp
