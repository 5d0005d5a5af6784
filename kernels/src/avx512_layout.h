// Channels of pixels to C4 and back, and the copy of a plane, for every AVX-512 target.
#pragma once

#include <immintrin.h>

#include "conv.h"

namespace dp {
namespace {

inline __m512i load(const uint8_t* from) { return _mm512_loadu_si512(from); }

// Sixteen vectors of sixteen quads, transposed: what was a pixel's quads becomes a quad's pixels.
inline void transpose(__m512i (&v)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    v[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    v[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// Bytes [0, count) of 64 as a mask.
inline __mmask64 first_bytes(int count) { return count >= 64 ? ~0ull : count <= 0 ? 0 : (1ull << count) - 1; }

void to_c4(int pixels, int channels, const uint8_t* nhwc, uint8_t* c4) {
  const int padded = round_up(pixels, DP_PIXELS), quads = round_up(channels, DP_QUAD) / DP_QUAD;
  for (int pixel = 0; pixel < padded; pixel += DP_PIXELS)
    for (int quad = 0; quad < quads; quad += 16) {
      const __mmask64 bytes = first_bytes(channels - quad * DP_QUAD);
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        v[i] = pixel + i < pixels
                   ? _mm512_maskz_loadu_epi8(bytes, nhwc + size_t(pixel + i) * channels + quad * DP_QUAD)
                   : _mm512_setzero_si512();
      transpose(v);
      for (int i = 0; i < 16 && quad + i < quads; ++i)
        _mm512_store_si512(c4 + (size_t(quad + i) * padded + pixel) * DP_QUAD, v[i]);
    }
}

void from_c4(int pixels, int channels, const uint8_t* c4, uint8_t* nhwc) {
  const int padded = round_up(pixels, DP_PIXELS), quads = round_up(channels, DP_QUAD) / DP_QUAD;
  for (int pixel = 0; pixel < padded; pixel += DP_PIXELS)
    for (int quad = 0; quad < quads; quad += 16) {
      const __mmask64 bytes = first_bytes(channels - quad * DP_QUAD);
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        v[i] = quad + i < quads ? load(c4 + (size_t(quad + i) * padded + pixel) * DP_QUAD) : _mm512_setzero_si512();
      transpose(v);
      for (int i = 0; i < 16 && pixel + i < pixels; ++i)
        _mm512_mask_storeu_epi8(nhwc + size_t(pixel + i) * channels + quad * DP_QUAD, bytes, v[i]);
    }
}

template <bool kHalved>
void copy_segments(const Packed& packed, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to) {
  const __m512i around = _mm512_set1_epi32(int32_t(outside));
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const int32_t* starts = packed.vector_segments.data();
  const Segment* segment = packed.segments.data() + starts[begin];
  for (int v = begin; v < end; ++v, to += kVectorBytes) {
    __m512i x = around;
    for (const Segment* last = packed.segments.data() + starts[v + 1]; segment != last; ++segment) {
      const uint8_t* from = plane + segment->from;
      if (kHalved) {
        const __m512i low = _mm512_maskz_loadu_epi32(segment->low, from);
        const __m512i high = _mm512_maskz_loadu_epi32(segment->high, from + kVectorBytes);
        x = _mm512_mask_mov_epi32(x, segment->lanes, _mm512_permutex2var_epi32(low, even, high));
      } else {
        x = _mm512_mask_loadu_epi32(x, segment->lanes, from);
      }
    }
    _mm512_store_si512(to, x);
  }
}

} // namespace
} // namespace dp

#include "vector_copy.h"
