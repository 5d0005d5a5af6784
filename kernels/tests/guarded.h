// Memory that ends, or begins, where touching one byte more is a fault.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

class Guarded {
 public:
  // `bytes` that touch the page that may not be read or written: the one after them, or the one before. Where they do not
  // fill whole vectors, only `is_exact` lets them end at an address of any alignment.
  Guarded(size_t bytes, bool at_end, bool is_exact = false) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), inner = (bytes + page - 1) / page * page;
    total_ = inner + 2 * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, total_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || (inner && mprotect(base_ + page, inner, PROT_READ | PROT_WRITE))) throw std::bad_alloc();
    const size_t taken = is_exact ? bytes : (bytes + 63) / 64 * 64;
    data_ = base_ + page + (at_end ? inner - taken : 0);
  }
  ~Guarded() { munmap(base_, total_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  uint8_t* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t *base_, *data_;
  size_t total_;
};
