// What a node prepares once, and scratch that a layer takes and gives back: as many pieces come into being as layers run at once.
#pragma once

#include <mutex>

#include "operation.h"

namespace dp {

class ScratchPool {
 public:
  // That of all layers of the process while there are any: what one layer has used lies in the caches when the next one comes.
  static std::shared_ptr<ScratchPool> of_all() {
    static std::mutex mutex;
    static std::weak_ptr<ScratchPool> known;
    std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<ScratchPool> pool = known.lock();
    if (!pool) known = pool = std::make_shared<ScratchPool>();
    return pool;
  }

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

// A layer made once, shared by all clones of a node.
template <class Layer, void (*destroy)(Layer*)>
struct Prepared {
  explicit Prepared(Layer* made) : layer(made) {}
  ~Prepared() { destroy(layer); }
  Prepared(const Prepared&) = delete;
  Prepared& operator=(const Prepared&) = delete;

  Layer* layer;
  std::shared_ptr<ScratchPool> pool = ScratchPool::of_all();
};

} // namespace dp
