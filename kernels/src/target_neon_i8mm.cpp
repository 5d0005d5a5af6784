// NEON with int8 matrix products (Neoverse N2 and V1, Cortex-A510, A710 and later). USDOT multiplies activations as they are, and
// USMMLA two pixels by two rows, eight channels deep: shared rows take two quads at a time, zipped, so that four rows of four pixels
// cost four multiplications and two zips where dot products are eight.
//
// Target 20 on aarch64: -march=armv8.2-a+dotprod+i8mm
#include <arm_neon.h>

#include "conv.h"
#include "neon_runs.h"
#include "unrolled.h"

namespace dp {
namespace {

constexpr uint8_t kFlip = 0;
constexpr int kPass = 4; // with zipped pixels and weights beside 24 accumulators, as in passes of six, the compiler keeps some in memory

template <int lane>
[[gnu::always_inline]] inline void multiply(int32x4_t& acc, uint8x16_t x, int8x16_t weights) {
  acc = vusdotq_laneq_s32(acc, x, weights, lane);
}

[[gnu::always_inline]] inline void multiply_rows(int32x4_t& acc, int8x16_t weights, uint8x8_t x) {
  acc = vsudotq_lane_s32(acc, weights, x, 0);
}

// Of two quads' registers the first two lanes of each, side by side, and the last two.
struct Zipped {
  uint8x16_t low, high;

  Zipped(uint8x16_t a, uint8x16_t b)
      : low(vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))),
        high(vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)))) {}
};

// Sums of rows 2i and 2i + 1 in two pixels each: [pixel][row].
template <int N>
struct Square {
  int32x4_t low[N], high[N];
};

template <int N>
[[gnu::always_inline]] inline void multiply_squares(Square<N> (&acc)[2], const Zipped& weights, const uint8_t* a, const uint8_t* b) {
  const int8x16_t rows[2] = {vreinterpretq_s8_u8(weights.low), vreinterpretq_s8_u8(weights.high)};
  unrolled<N>([&](auto n) DP_INLINE {
    const Zipped x(vld1q_u8(a + n * 16), vld1q_u8(b + n * 16));
    unrolled<2>([&](auto i) DP_INLINE {
      acc[i].low[n] = vusmmlaq_s32(acc[i].low[n], x.low, rows[i]);
      acc[i].high[n] = vusmmlaq_s32(acc[i].high[n], x.high, rows[i]);
    });
  });
}

// The sums of a quad's rows.
template <int N>
[[gnu::always_inline]] inline void shared_sums(const Packed& packed, int quad, const uint8_t* source, int32x4_t (&acc)[DP_QUAD][N]) {
  Square<N> squares[2];
  unrolled<2>([&](auto i) DP_INLINE {
    const int32x2_t two = vld1_s32(packed.bias.data() + size_t(quad) * DP_QUAD + 2 * i);
    unrolled<N>([&](auto n) DP_INLINE { squares[i].low[n] = squares[i].high[n] = vcombine_s32(two, two); });
  });
  const auto weights_of = [](const SharedEntry& entry) DP_INLINE { return vld1q_u8(reinterpret_cast<const uint8_t*>(entry.weights)); };
  const SharedEntry* entry = packed.shared.data() + packed.quads[size_t(quad)].begin;
  const int length = packed.quads[size_t(quad)].length;
  for (const SharedEntry* end = entry + length / 2 * 2; entry != end; entry += 2)
    multiply_squares(squares, {weights_of(entry[0]), weights_of(entry[1])}, source + entry[0].offset, source + entry[1].offset);
  if (length % 2) multiply_squares(squares, {weights_of(*entry), vdupq_n_u8(0)}, source + entry->offset, source + entry->offset);
  unrolled<2>([&](auto i) DP_INLINE {
    unrolled<N>([&](auto n) DP_INLINE {
      acc[2 * i][n] = vuzp1q_s32(squares[i].low[n], squares[i].high[n]);
      acc[2 * i + 1][n] = vuzp2q_s32(squares[i].low[n], squares[i].high[n]);
    });
  });
}

} // namespace
} // namespace dp

#include "neon_border.h"
#include "neon_conv.h"
#include "neon_gate.h"
#include "neon_linear.h"

namespace dp {

Target neon_i8mm_target() {
  Target made{"neon_i8mm", has_matrix_product, tile, kWidest, rows_for, to_c4, from_c4, copy_flipped,
              sums, scale, quantize, max_rows, max_columns};
  made.dot = dot;
  return made;
}

} // namespace dp
