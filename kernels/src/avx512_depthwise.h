// Depthwise convolutions straight from the image, without a copy of it. Included where `permute_bytes` is: a permutation
// takes what four neighbouring output pixels read of a row, four taps of one channel side by side, and one VPDPBUSD multiplies
// them; through shared rows each tap is a multiplication of its own for each channel, three quarters of it by zeros.
#pragma once

#include "avx512_conv.h"

namespace dp {
namespace {

// Output pixels of a permutation, and such units of one pass.
constexpr int kDepthwisePixels = 4, kDepthwiseUnits = 4;

// What stays the same over a quad.
template <int G>
struct Depthwise {
  const Epilogue& epilogue;
  const int8_t* weights;
  int kernel_y;
  __m512i outside, bias, index[G];
  __m512 scale;
};

// Rows of the input that one output row reads; of one beyond the image no lane is read.
struct DepthwiseRows {
  const uint8_t* from[kMostTaps];
  __mmask16 there[kMostTaps];
};

inline __m512i four(const void* from) { return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

// U units of an output row; `at` says where each begins in a row of the input, `inside` which of its sixteen pixels are there.
template <int U, int G, bool kSwish>
[[gnu::always_inline]] inline void depthwise_units(const Depthwise<G>& how, const DepthwiseRows& rows, const int32_t* at,
                                                   const uint16_t* inside, uint8_t* out, __mmask16 written) {
  const Epilogue& e = how.epilogue;
  __m512i acc[kDepthwiseUnits];
  unrolled<kDepthwiseUnits>([&](auto u) DP_INLINE { acc[u] = how.bias; });
  const int8_t* weights = how.weights;
  for (int ky = 0; ky < how.kernel_y; ++ky, weights += G * DP_PIXELS) {
    __m512i taps[G];
    unrolled<G>([&](auto t) DP_INLINE { taps[t] = four(weights + t * DP_PIXELS); });
    unrolled<U>([&](auto u) DP_INLINE {
      const __mmask16 read = __mmask16(inside[u] & rows.there[ky]);
      const __m512i x = _mm512_mask_loadu_epi32(how.outside, read, rows.from[ky] + at[u]);
      unrolled<G>([&](auto t) DP_INLINE { multiply(acc[u], permute_bytes(how.index[t], x), taps[t]); });
    });
  }
  unrolled<U>([&](auto u) DP_INLINE { acc[u] = requantize<kSwish, false>(acc[u], how.scale, e, how.bias); });
  const __m512i words = _mm512_packs_epi32(acc[0], acc[1]), more = _mm512_packs_epi32(acc[2], acc[3]);
  // Packing takes the pixels of four registers in turn.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words, more));
  const __m512i low = _mm512_set1_epi8(char(e.low)), high = _mm512_set1_epi8(char(e.high));
  _mm512_mask_storeu_epi32(out, written, _mm512_min_epu8(_mm512_max_epu8(bytes, low), high));
}

template <int G, bool kSwish>
void depthwise_rows(const Geometry& g, const Packed& packed, const Epilogue& e, const Plane& plane) {
  const dp_conv_shape& s = g.shape;
  Depthwise<G> how{e,
                   packed.tap_weights.data() + size_t(plane.quad) * size_t(s.kernel_y) * G * DP_PIXELS,
                   s.kernel_y,
                   _mm512_set1_epi32(int32_t(uint32_t(s.input_zero_point) * 0x01010101u)),
                   four(packed.bias.data() + plane.quad * DP_QUAD),
                   {},
                   _mm512_castsi512_ps(four(packed.scale.data() + plane.quad * DP_QUAD))};
  unrolled<G>([&](auto t) DP_INLINE { how.index[t] = load(packed.tap_index.data() + t * kVectorBytes); });
  const int32_t* at = packed.tap_from.data();
  const uint16_t* inside = packed.tap_inside.data();
  const int whole = g.width_out / DP_PIXELS * DP_PIXELS, rest = g.width_out - whole;
  const __mmask16 written = __mmask16((1u << rest) - 1);
  uint8_t* out = plane.out;
  for (int oy = 0; oy < g.height_out; ++oy, out += rest * DP_QUAD) {
    DepthwiseRows rows;
    for (int ky = 0; ky < s.kernel_y; ++ky) {
      const int iy = oy * s.stride_y - s.pad_top + ky;
      const bool there = iy >= 0 && iy < s.height;
      rows.from[ky] = plane.source + ptrdiff_t(there ? iy : 0) * s.width * DP_QUAD;
      rows.there[ky] = there ? __mmask16(-1) : __mmask16(0);
    }
    int unit = 0;
    for (; unit < whole / kDepthwisePixels; unit += kDepthwiseUnits, out += kVectorBytes)
      depthwise_units<4, G, kSwish>(how, rows, at + unit, inside + unit, out, __mmask16(-1));
    if (rest > 12) depthwise_units<4, G, kSwish>(how, rows, at + unit, inside + unit, out, written);
    else if (rest > 8) depthwise_units<3, G, kSwish>(how, rows, at + unit, inside + unit, out, written);
    else if (rest > 4) depthwise_units<2, G, kSwish>(how, rows, at + unit, inside + unit, out, written);
    else if (rest > 0) depthwise_units<1, G, kSwish>(how, rows, at + unit, inside + unit, out, written);
  }
}

void depthwise(const Geometry& g, const Packed& packed, const Epilogue& e, const Plane& plane) {
  const bool swish = e.has_swish();
  if (packed.tap_groups == 1) return swish ? depthwise_rows<1, true>(g, packed, e, plane) : depthwise_rows<1, false>(g, packed, e, plane);
  return swish ? depthwise_rows<2, true>(g, packed, e, plane) : depthwise_rows<2, false>(g, packed, e, plane);
}

} // namespace
} // namespace dp
