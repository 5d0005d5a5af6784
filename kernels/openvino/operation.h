// What the operations share: shapes in C4, memory at addresses the kernels accept, OpenVINO's threads.
#pragma once

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <openvino/core/extension.hpp>
#include <openvino/op/op.hpp>
#include <utility>
#include <vector>

#include "deploypruner/kernels.h"

namespace dp {

inline int64_t quads(int64_t channels) { return (channels + DP_QUAD - 1) / DP_QUAD; }
inline int64_t whole(int64_t pixels) { return (pixels + DP_PIXELS - 1) / DP_PIXELS * DP_PIXELS; }

inline ov::PartialShape c4(const ov::Dimension& batch, int64_t channels, int64_t pixels) {
  return {batch, quads(channels), whole(pixels), DP_QUAD};
}

// 64-byte aligned memory.
struct Buffer {
  explicit Buffer(size_t size)
      : bytes(size), data(static_cast<uint8_t*>(::operator new(std::max<size_t>(size, 1), std::align_val_t{DP_ALIGN}))) {}
  Buffer(Buffer&& other) noexcept : bytes(other.bytes), data(std::exchange(other.data, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(bytes, other.bytes);
    std::swap(data, other.data);
    return *this;
  }
  ~Buffer() { ::operator delete(data, std::align_val_t{DP_ALIGN}); }
  size_t bytes;
  uint8_t* data;
};

// A tensor's bytes at an address the kernels accept. OpenVINO aligns what it allocates; a user's own memory may not be.
class Aligned {
 public:
  explicit Aligned(const ov::Tensor& tensor)
      : bytes_(tensor.get_byte_size()), original_(static_cast<uint8_t*>(const_cast<void*>(tensor.data()))) {
    if (reinterpret_cast<uintptr_t>(original_) % DP_ALIGN == 0) return;
    copy_ = std::make_unique<Buffer>(bytes_);
    std::memcpy(copy_->data, original_, bytes_);
  }
  uint8_t* data() const { return copy_ ? copy_->data : original_; }
  void write_back() const {
    if (copy_) std::memcpy(original_, copy_->data, bytes_);
  }

 private:
  size_t bytes_;
  uint8_t* original_;
  std::unique_ptr<Buffer> copy_;
};

// Pieces of work on the threads OpenVINO gave this inference.
inline void on_tbb(void*, int32_t count, void (*body)(void*, int32_t), void* context) {
  tbb::parallel_for(0, count, [=](int32_t i) { body(context, i); });
}

// What a file of operations adds to the extension.
using Extensions = std::vector<ov::Extension::Ptr>;
void add_layouts(Extensions&);
void add_convolution(Extensions&);
void add_gates(Extensions&);
void add_borders(Extensions&);
void add_linear(Extensions&);

} // namespace dp
