// NEON with dot products (Cortex-A55, A75, A76 and Neoverse N1, and later). SDOT multiplies signed bytes by signed ones, so copies of
// the activations hold x - 128, and biases make up for it: see `Target::lower`.
//
// Target 10 on aarch64: -march=armv8.2-a+dotprod
#include <arm_neon.h>

#include "conv.h"
#include "neon_runs.h"
#include "unrolled.h"

namespace dp {
namespace {

constexpr uint8_t kFlip = 0x80;
constexpr int kPass = 6; // 24 accumulators, of 32 registers there are

template <int lane>
[[gnu::always_inline]] inline void multiply(int32x4_t& acc, uint8x16_t x, int8x16_t weights) {
  acc = vdotq_laneq_s32(acc, vreinterpretq_s8_u8(x), weights, lane);
}

[[gnu::always_inline]] inline void multiply_rows(int32x4_t& acc, int8x16_t weights, uint8x8_t x) {
  acc = vdotq_lane_s32(acc, weights, vreinterpret_s8_u8(x), 0);
}

// The sums of a quad's rows; one load has the weights of all four.
template <int N>
[[gnu::always_inline]] inline void shared_sums(const Packed& packed, int quad, const uint8_t* source, int32x4_t (&acc)[DP_QUAD][N]) {
  unrolled<DP_QUAD>([&](auto r) DP_INLINE {
    const int32x4_t start = vdupq_n_s32(packed.bias[size_t(quad) * DP_QUAD + r]);
    unrolled<N>([&](auto n) DP_INLINE { acc[r][n] = start; });
  });
  const SharedEntry* entry = packed.shared.data() + packed.quads[size_t(quad)].begin;
  for (const SharedEntry* end = entry + packed.quads[size_t(quad)].length; entry != end; ++entry) {
    const int8x16_t weights = vld1q_s8(reinterpret_cast<const int8_t*>(entry->weights));
    const uint8_t* from = source + entry->offset;
    unrolled<N>([&](auto n) DP_INLINE {
      const uint8x16_t x = vld1q_u8(from + n * 16);
      unrolled<DP_QUAD>([&](auto r) DP_INLINE { multiply<r>(acc[r][n], x, weights); });
    });
  }
}

} // namespace
} // namespace dp

#include "neon_border.h"
#include "neon_conv.h"
#include "neon_gate.h"
#include "neon_linear.h"

namespace dp {

Target neon_dot_target() {
  Target made{"neon_dot", has_dot_product, tile, kWidest, rows_for, to_c4, from_c4, copy_flipped,
              sums, scale, quantize, max_rows, max_columns};
  made.lower = lower;
  made.dot = dot;
  return made;
}

} // namespace dp
