// The copy of a plane on every target with vector registers. The header that includes this defines `copy_segments`;
// hence the unnamed namespace.
#pragma once

#include <cstring>

#include "conv.h"

namespace dp {
namespace {

void copy(const Packed& packed, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to) {
  if (packed.pixels.empty() && packed.is_halved) return copy_segments<true>(packed, plane, outside, begin, end, to);
  if (packed.pixels.empty()) return copy_segments<false>(packed, plane, outside, begin, end, to);
  for (int i = begin * DP_PIXELS; i < end * DP_PIXELS; ++i, to += DP_QUAD) {
    const int32_t pixel = packed.pixels[size_t(i)];
    std::memcpy(to, pixel < 0 ? reinterpret_cast<const uint8_t*>(&outside) : plane + size_t(pixel) * DP_QUAD, DP_QUAD);
  }
}

} // namespace
} // namespace dp
