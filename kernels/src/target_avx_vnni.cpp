// AVX-VNNI: 256-bit VPDPBUSD on processors without AVX-512 (Alder Lake and later, Zen 5 too).
//
// For tests on a CPU with AVX-512 VNNI and without it, DP_EMULATE_VBMI takes the same instruction in AVX-512's encoding.
//
// Target 15 on x86_64: -mavx2 -mfma -mpopcnt
#include <immintrin.h>

namespace dp {
namespace {

constexpr bool kSplitsPairs = false;

// acc += x * weights. As assembly, because the compiler keeps copies of the accumulators around its own intrinsic, and
// because without AVX-512 VNNI only the VEX form exists, which has to be asked for.
[[gnu::always_inline]] inline void multiply(__m256i& acc, __m256i x, __m256i weights) {
#ifdef DP_EMULATE_VBMI
  asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(weights));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(weights));
#endif
}

} // namespace
} // namespace dp

#include "avx2_border.h"
#include "avx2_conv.h"
#include "avx2_gate.h"
#include "avx2_linear.h"

namespace dp {
namespace {

bool runs() {
  const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef DP_EMULATE_VBMI
  return has && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return has && __builtin_cpu_supports("avxvnni");
#endif
}

} // namespace

Target avx_vnni_target() {
  Target made{"avx_vnni", runs, tile, kWidest, rows_for, to_c4, from_c4, copy,
          sums, scale, quantize, max_rows, max_columns};
  made.dot = dot;
  return made;
}

} // namespace dp
