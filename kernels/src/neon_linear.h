// Linear layers of one pixel for every NEON target: the input's quad is a lane, and the weights of four rows a register. Before it
// includes this a target defines `multiply_rows(acc, weights, x)`, acc += weights * the first lane of x.
#pragma once

#include "linear.h"
#include "neon_layout.h"

namespace dp {
namespace {

void dot(int steps, const int32_t* from, const LinearStep* step, const uint8_t* x, int32_t (&sums)[kLinearRows]) {
  constexpr int kParts = kLinearRows / kLanes;
  int32x4_t acc[2][kParts]; // of every second step, so that fewer wait for each other
  for (int part = 0; part < kParts; ++part) acc[0][part] = vld1q_s32(sums + part * kLanes), acc[1][part] = vdupq_n_s32(0);
  const auto add = [&](int i, int32x4_t(&to)[kParts]) DP_INLINE {
    uint32_t quad;
    std::memcpy(&quad, x + from[i], sizeof quad);
    const uint8x8_t values = vcreate_u8(quad ^ kFlip * 0x01010101u);
    for (int part = 0; part < kParts; ++part) multiply_rows(to[part], vld1q_s8(step[i].weights[part * kLanes]), values);
  };
  int i = 0;
  for (; i + 2 <= steps; i += 2) {
    add(i, acc[0]);
    add(i + 1, acc[1]);
  }
  if (i < steps) add(i, acc[0]);
  for (int part = 0; part < kParts; ++part) vst1q_s32(sums + part * kLanes, vaddq_s32(acc[0][part], acc[1][part]));
}

} // namespace
} // namespace dp
