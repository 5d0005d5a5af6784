// Squeeze and excitation for every AVX-512 target.
#pragma once

#include <immintrin.h>

#include "conv.h"

namespace dp {
namespace {

void sums(int pixels, const uint8_t* quad, int32_t (&sums)[DP_QUAD]) {
  __m512i acc[DP_QUAD] = {};
  for (int pixel = 0; pixel < pixels; pixel += DP_PIXELS) {
    const __mmask16 inside = pixels - pixel >= DP_PIXELS ? __mmask16(-1) : __mmask16((1u << (pixels - pixel)) - 1);
    const __m512i x = _mm512_maskz_loadu_epi32(inside, quad + size_t(pixel) * DP_QUAD);
#pragma GCC unroll 4
    for (int i = 0; i < DP_QUAD; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], x, _mm512_set1_epi32(1 << (8 * i)));
  }
  for (int i = 0; i < DP_QUAD; ++i) sums[i] = _mm512_reduce_add_epi32(acc[i]);
}

void scale(int vectors, const uint8_t* x, const float (&m)[DP_QUAD], const float (&b)[DP_QUAD], uint8_t* y) {
  const __m512 by = _mm512_broadcast_f32x4(_mm_loadu_ps(m)), shift = _mm512_broadcast_f32x4(_mm_loadu_ps(b));
  // Packing takes the pixels of four registers in turn.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int v = 0; v < vectors; ++v, x += kVectorBytes, y += kVectorBytes) {
    __m512i part[DP_QUAD];
#pragma GCC unroll 4
    for (int i = 0; i < DP_QUAD; ++i) { // four pixels of four channels
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(x) + i));
      part[i] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(bytes), by, shift));
    }
    const __m512i words = _mm512_packs_epi32(part[0], part[1]), more = _mm512_packs_epi32(part[2], part[3]);
    _mm512_store_si512(y, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words, more)));
  }
}

} // namespace
} // namespace dp
