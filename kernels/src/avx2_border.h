// Where an image becomes C4, and max pooling, for every 256-bit target.
#pragma once

#include "avx2_layout.h"

namespace dp {
namespace {

void quantize(int pixels, int channels, const float* x, float step, float zero_point, uint8_t* quad) {
  const __m256 by = _mm256_set1_ps(step), shift = _mm256_set1_ps(zero_point), most = _mm256_set1_ps(255);
  const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int pixel = 0; pixel < round_up(pixels, DP_PIXELS); pixel += kLanes) {
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(pixels - pixel), number);
    __m256i found = _mm256_setzero_si256();
    for (int i = 0; i < channels; ++i) {
      const __m256 given = pixel < pixels ? _mm256_maskload_ps(x + size_t(i) * pixels + pixel, inside) : _mm256_setzero_ps();
      const __m256 rounded = _mm256_round_ps(_mm256_div_ps(given, by), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __m256 f = _mm256_max_ps(_mm256_min_ps(_mm256_add_ps(rounded, shift), most), _mm256_setzero_ps());
      found = _mm256_or_si256(found, _mm256_slli_epi32(_mm256_and_si256(_mm256_cvtps_epi32(f), inside), 8 * i));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(quad + size_t(pixel) * DP_QUAD), found);
  }
}

void max_rows(int bytes, const uint8_t* x, uint8_t* y) {
  int at = 0;
  for (; at + kHalf <= bytes; at += kHalf)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + at), _mm256_max_epu8(load(x + at), load(y + at)));
  for (; at < bytes; ++at) y[at] = std::max(x[at], y[at]);
}

void max_columns(int pixels, int kernel, int stride, const uint8_t* x, uint8_t* y) {
  const auto largest = [kernel](const uint8_t* from) {
    __m256i found = load(from);
    for (int i = 1; i < kernel; ++i) found = _mm256_max_epu8(found, load(from + i * DP_QUAD));
    return found;
  };
  for (int pixel = 0; pixel < pixels; pixel += kLanes) {
    const uint8_t* from = x + size_t(pixel) * stride * DP_QUAD;
    __m256i found = largest(from);
    if (stride == 2) {
      const __m256 even = _mm256_shuffle_ps(_mm256_castsi256_ps(found), _mm256_castsi256_ps(largest(from + kHalf)), 0x88);
      found = _mm256_permute4x64_epi64(_mm256_castps_si256(even), 0xd8);
    }
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(pixels - pixel), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm256_maskstore_epi32(reinterpret_cast<int*>(y + size_t(pixel) * DP_QUAD), inside, found);
  }
}

} // namespace
} // namespace dp
