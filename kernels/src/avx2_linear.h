// Linear layers of one pixel for every 256-bit target: products of 16 bits, added in pairs, exact whatever the weights are. What
// these layers wait for is their weights.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "linear.h"

namespace dp {
namespace {

void dot(int steps, const int32_t* from, const LinearStep* step, const uint8_t* x, int32_t (&sums)[kLinearRows]) {
  constexpr int kParts = 4, kPairs = 8; // registers, and sums of a register: two for each of four rows
  __m256i acc[kParts] = {};
  for (int i = 0; i < steps; ++i, ++step) {
    int32_t quad;
    std::memcpy(&quad, x + from[i], sizeof quad);
    const __m256i words = _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(_mm_cvtsi32_si128(quad)));
    for (int part = 0; part < kParts; ++part) {
      const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(step->weights[part * DP_QUAD]));
      acc[part] = _mm256_add_epi32(acc[part], _mm256_madd_epi16(words, _mm256_cvtepi8_epi16(bytes)));
    }
  }
  for (int part = 0; part < kParts; ++part) {
    alignas(32) int32_t pairs[kPairs];
    _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), acc[part]);
    for (int row = 0; row < kPairs / 2; ++row) sums[part * DP_QUAD + row] += pairs[2 * row] + pairs[2 * row + 1];
  }
}

} // namespace
} // namespace dp
