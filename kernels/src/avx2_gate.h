// Squeeze and excitation for every 256-bit target.
#pragma once

#include "avx2_layout.h"

namespace dp {
namespace {

void sums(int pixels, const uint8_t* quad, int32_t (&sums)[DP_QUAD]) {
  __m256i acc[DP_QUAD] = {};
  alignas(32) uint32_t lanes[kLanes] = {};
  for (int pixel = 0; pixel < pixels; pixel += kLanes) {
    const uint8_t* from = quad + size_t(pixel) * DP_QUAD;
    if (pixels - pixel < kLanes) {
      std::memcpy(lanes, from, size_t(pixels - pixel) * DP_QUAD);
      from = reinterpret_cast<const uint8_t*>(lanes);
    }
    const __m256i x = load(from), byte = _mm256_set1_epi32(255);
    for (int i = 0; i < DP_QUAD; ++i) acc[i] = _mm256_add_epi32(acc[i], _mm256_and_si256(_mm256_srli_epi32(x, 8 * i), byte));
  }
  for (int i = 0; i < DP_QUAD; ++i) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), acc[i]);
    sums[i] = 0;
    for (uint32_t lane : lanes) sums[i] += int32_t(lane);
  }
}

void scale(int vectors, const uint8_t* x, const float (&m)[DP_QUAD], const float (&b)[DP_QUAD], uint8_t* y) {
  const __m256 by = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(m));
  const __m256 shift = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(b));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); // packing takes the pixels of four registers in turn
  for (int half = 0; half < 2 * vectors; ++half, x += kHalf, y += kHalf) {
    __m256i part[DP_QUAD];
    for (int i = 0; i < DP_QUAD; ++i) { // two pixels of four channels
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + 8 * i)));
      part[i] = _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(bytes), by, shift));
    }
    const __m256i words = _mm256_packs_epi32(part[0], part[1]), more = _mm256_packs_epi32(part[2], part[3]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(y),
                       _mm256_permutevar8x32_epi32(_mm256_packus_epi16(words, more), order));
  }
}

} // namespace
} // namespace dp
