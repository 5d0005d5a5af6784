// AVX-512 VNNI: Cascade Lake and later.
//
// Target 20 on x86_64: -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mfma -mpopcnt -Wno-uninitialized -Wno-maybe-uninitialized
// GCC's own headers warn about the registers they leave undefined on purpose.
#include "avx512_border.h"
#include "avx512_conv.h"
#include "avx512_gate.h"
#include "avx512_linear.h"

namespace dp {
namespace {

bool runs() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

} // namespace

Target avx512_vnni_target() {
  Target made{"avx512_vnni", runs, tile, kWidest, rows_for, to_c4, from_c4, copy,
          sums, scale, quantize, max_rows, max_columns};
  made.dot = dot;
  return made;
}

} // namespace dp
