// Pixels with all their channels to C4 and back, a quad of a pixel at a time: all that AVX2 has, and the rest of what NEON transposes.
// Each target compiles this for its own instructions, hence the unnamed namespace.
#pragma once

#include <algorithm>
#include <cstring>

#include "conv.h"

namespace dp {
namespace {

// Which of them: from a pixel and a channel on, the latter a multiple of four.
struct Quadwise {
  int pixels, channels;
  int first_pixel, first_channel;
};

// Pixels that only fill up the last vector become zero.
inline void quads_to_c4(const Quadwise& of, const uint8_t* nhwc, uint8_t* c4) {
  const int padded = round_up(of.pixels, DP_PIXELS);
  for (int first = of.first_channel; first < of.channels; first += DP_QUAD) {
    auto* to = c4 + (size_t(first / DP_QUAD) * padded + size_t(of.first_pixel)) * DP_QUAD;
    const int present = std::min<int>(DP_QUAD, of.channels - first);
    for (int pixel = of.first_pixel; pixel < of.pixels; ++pixel, to += DP_QUAD) {
      uint32_t quad = 0;
      if (present == DP_QUAD)
        std::memcpy(&quad, nhwc + size_t(pixel) * of.channels + first, DP_QUAD);
      else
        std::memcpy(&quad, nhwc + size_t(pixel) * of.channels + first, size_t(present));
      std::memcpy(to, &quad, DP_QUAD);
    }
    std::memset(to, 0, size_t(padded - of.pixels) * DP_QUAD);
  }
}

inline void quads_from_c4(const Quadwise& of, const uint8_t* c4, uint8_t* nhwc) {
  const int padded = round_up(of.pixels, DP_PIXELS), last = of.pixels;
  const size_t channels = size_t(of.channels);
  for (int first = of.first_channel; first < of.channels; first += DP_QUAD) {
    const auto* from = c4 + (size_t(first / DP_QUAD) * padded + size_t(of.first_pixel)) * DP_QUAD;
    const size_t present = size_t(std::min<int>(DP_QUAD, of.channels - first));
    uint8_t* to = nhwc + size_t(of.first_pixel) * channels + size_t(first);
    for (int pixel = of.first_pixel; pixel < last; ++pixel, from += DP_QUAD, to += channels)
      if (present == DP_QUAD)
        std::memcpy(to, from, DP_QUAD);
      else
        std::memcpy(to, from, present);
  }
}

} // namespace
} // namespace dp
