// Scratch that an inference takes and gives back: as many pieces come into being as inferences run at once.
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

} // namespace dp
