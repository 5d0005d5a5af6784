// AVX2. VPMADDUBSW adds two products in 16 bits, which saturate: weights whose two products could leave them are split at
// packing time (see `splits_pairs`), so that it is exact.
//
// Target 10 on x86_64: -mavx2 -mfma -mpopcnt
#include <immintrin.h>

namespace dp {
namespace {

constexpr bool kSplitsPairs = true;

// acc += x * weights.
[[gnu::always_inline]] inline void multiply(__m256i& acc, __m256i x, __m256i weights) {
  const __m256i pairs = _mm256_maddubs_epi16(x, weights);
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

} // namespace
} // namespace dp

#include "avx2_border.h"
#include "avx2_conv.h"
#include "avx2_gate.h"
#include "avx2_linear.h"

namespace dp {
namespace {

bool runs() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

} // namespace

Target avx2_target() {
  Target made{"avx2", runs, tile, kWidest, rows_for, to_c4, from_c4, copy,
              sums, scale, quantize, max_rows, max_columns};
  made.splits_pairs = kSplitsPairs;
  made.dot = dot;
  return made;
}

} // namespace dp
