// Where an image becomes C4, and max pooling, for every NEON target.
#pragma once

#include "neon_layout.h"

namespace dp {
namespace {

void quantize(int pixels, int channels, const float* x, float step, float zero_point, uint8_t* quad) {
  const float32x4_t by = vdupq_n_f32(step), shift = vdupq_n_f32(zero_point), most = vdupq_n_f32(255), zero = vdupq_n_f32(0);
  for (int pixel = 0; pixel < round_up(pixels, DP_PIXELS); pixel += kLanes) {
    const int inside = std::max(0, std::min(kLanes, pixels - pixel));
    uint32x4_t found = vdupq_n_u32(0);
    for (int i = 0; i < channels && inside; ++i) {
      const float* from = x + size_t(i) * pixels + pixel;
      float few[kLanes] = {};
      if (inside < kLanes) from = std::copy_n(from, inside, few) - inside;
      const float32x4_t rounded = vrndnq_f32(vdivq_f32(vld1q_f32(from), by));
      const float32x4_t f = vmaxq_f32(vminnmq_f32(vaddq_f32(rounded, shift), most), zero); // the lesser number: of NaN 255
      found = vorrq_u32(found, vshlq_u32(vcvtq_u32_f32(f), vdupq_n_s32(8 * i)));
    }
    uint8_t* to = quad + size_t(pixel) * DP_QUAD;
    vst1q_u8(to, vreinterpretq_u8_u32(found));
    if (inside < kLanes) std::memset(to + inside * DP_QUAD, 0, size_t(kLanes - inside) * DP_QUAD);
  }
}

void max_rows(int bytes, const uint8_t* x, uint8_t* y) {
  int at = 0;
  for (; at + kRegisterBytes <= bytes; at += kRegisterBytes) vst1q_u8(y + at, vmaxq_u8(load(x + at), load(y + at)));
  for (; at < bytes; ++at) y[at] = std::max(x[at], y[at]);
}

void max_columns(int pixels, int kernel, int stride, const uint8_t* x, uint8_t* y) {
  const auto largest = [kernel](const uint8_t* from) {
    uint8x16_t found = load(from);
    for (int i = 1; i < kernel; ++i) found = vmaxq_u8(found, load(from + i * DP_QUAD));
    return found;
  };
  for (int pixel = 0; pixel < pixels; pixel += kLanes) {
    const uint8_t* from = x + size_t(pixel) * stride * DP_QUAD;
    uint8x16_t found = largest(from);
    if (stride == 2) {
      const uint32x4_t first = vreinterpretq_u32_u8(found), second = vreinterpretq_u32_u8(largest(from + kRegisterBytes));
      found = vreinterpretq_u8_u32(vuzp1q_u32(first, second));
    }
    uint8_t* to = y + size_t(pixel) * DP_QUAD;
    if (pixels - pixel >= kLanes) {
      vst1q_u8(to, found);
      continue;
    }
    uint8_t few[kRegisterBytes];
    vst1q_u8(few, found);
    std::memcpy(to, few, size_t(pixels - pixel) * DP_QUAD);
  }
}

} // namespace
} // namespace dp
