// Squeeze and excitation for every NEON target.
#pragma once

#include "neon_conv.h"

namespace dp {
namespace {

void sums(int pixels, const uint8_t* quad, int32_t (&sums)[DP_QUAD]) {
  uint32x4_t acc = vdupq_n_u32(0); // a lane is a channel
  int pixel = 0;
  for (; pixel + kLanes <= pixels; pixel += kLanes)
    acc = vdotq_u32(acc, transpose_lanes(load(quad + size_t(pixel) * DP_QUAD)), vdupq_n_u8(1));
  vst1q_s32(sums, vreinterpretq_s32_u32(acc));
  for (; pixel < pixels; ++pixel)
    for (int i = 0; i < DP_QUAD; ++i) sums[i] += quad[size_t(pixel) * DP_QUAD + size_t(i)];
}

void scale(int vectors, const uint8_t* x, const float (&m)[DP_QUAD], const float (&b)[DP_QUAD], uint8_t* y) {
  const float32x4_t by = vld1q_f32(m), shift = vld1q_f32(b);
  for (int i = 0; i < vectors * kRegisters; ++i, x += kRegisterBytes, y += kRegisterBytes) {
    const uint8x16_t bytes = load(x);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    const uint32x4_t pixel[kLanes] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)),
                                      vmovl_high_u16(high)};
    int32x4_t part[kLanes];
    for (int p = 0; p < kLanes; ++p) part[p] = vcvtnq_s32_f32(vfmaq_f32(shift, vcvtq_f32_u32(pixel[p]), by));
    vst1q_u8(y, narrow(part));
  }
}

} // namespace
} // namespace dp
