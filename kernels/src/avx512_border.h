// Where an image becomes C4, and max pooling, for every AVX-512 target.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "conv.h"

namespace dp {
namespace {

void quantize(int pixels, int channels, const float* x, float step, float zero_point, uint8_t* quad) {
  const __m512 by = _mm512_set1_ps(step), shift = _mm512_set1_ps(zero_point), most = _mm512_set1_ps(255);
  for (int pixel = 0; pixel < pixels; pixel += DP_PIXELS) {
    const __mmask16 inside = __mmask16((1u << std::min<int>(DP_PIXELS, pixels - pixel)) - 1);
    __m512i found = _mm512_setzero_si512();
    for (int i = 0; i < channels; ++i) {
      const __m512 given = _mm512_maskz_loadu_ps(inside, x + size_t(i) * pixels + pixel);
      const __m512 rounded = _mm512_roundscale_ps(_mm512_div_ps(given, by), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __m512 f = _mm512_max_ps(_mm512_min_ps(_mm512_add_ps(rounded, shift), most), _mm512_setzero_ps());
      found = _mm512_or_si512(found, _mm512_slli_epi32(_mm512_maskz_cvtps_epi32(inside, f), unsigned(8 * i)));
    }
    _mm512_store_si512(quad + size_t(pixel) * DP_QUAD, found);
  }
}

void max_rows(int bytes, const uint8_t* x, uint8_t* y) {
  for (int at = 0; at < bytes; at += kVectorBytes) {
    const int count = std::min(kVectorBytes, bytes - at);
    const __mmask64 inside = count == kVectorBytes ? ~0ull : (1ull << count) - 1;
    _mm512_mask_storeu_epi8(y + at, inside,
                            _mm512_max_epu8(_mm512_maskz_loadu_epi8(inside, x + at), _mm512_maskz_loadu_epi8(inside, y + at)));
  }
}

void max_columns(int pixels, int kernel, int stride, const uint8_t* x, uint8_t* y) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const auto largest = [kernel](const uint8_t* from) {
    __m512i found = _mm512_loadu_si512(from);
    for (int i = 1; i < kernel; ++i) found = _mm512_max_epu8(found, _mm512_loadu_si512(from + i * DP_QUAD));
    return found;
  };
  for (int pixel = 0; pixel < pixels; pixel += DP_PIXELS) {
    const uint8_t* from = x + size_t(pixel) * stride * DP_QUAD;
    const __mmask16 inside = __mmask16((1u << std::min<int>(DP_PIXELS, pixels - pixel)) - 1);
    __m512i found = largest(from);
    if (stride == 2) found = _mm512_permutex2var_epi32(found, even, largest(from + kVectorBytes));
    _mm512_mask_storeu_epi32(y + size_t(pixel) * DP_QUAD, inside, found);
  }
}

} // namespace
} // namespace dp
