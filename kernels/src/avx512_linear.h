// Linear layers of one pixel for every AVX-512 target.
#pragma once

#include <cstring>

#include "avx512_conv.h"
#include "linear.h"

namespace dp {
namespace {

inline __m512i quad_everywhere(const uint8_t* x) {
  int32_t quad;
  std::memcpy(&quad, x, sizeof quad);
  return _mm512_set1_epi32(quad);
}

// Four sums of each row, which do not wait for each other.
void dot(int steps, const int32_t* from, const LinearStep* step, const uint8_t* x, int32_t (&sums)[kLinearRows]) {
  __m512i acc[4] = {_mm512_loadu_si512(sums), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  int i = 0;
  for (; i + 4 <= steps; i += 4)
    unrolled<4>([&](auto k) DP_INLINE { multiply(acc[k], quad_everywhere(x + from[i + k]), _mm512_load_si512(&step[i + k])); });
  for (; i < steps; ++i) multiply(acc[0], quad_everywhere(x + from[i]), _mm512_load_si512(&step[i]));
  _mm512_storeu_si512(sums, _mm512_add_epi32(_mm512_add_epi32(acc[0], acc[1]), _mm512_add_epi32(acc[2], acc[3])));
}

} // namespace
} // namespace dp
