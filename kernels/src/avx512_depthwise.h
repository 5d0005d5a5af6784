// Depthwise convolutions straight from the image, without a copy of it. Included where `permute_bytes` is: a permutation
// takes what four neighbouring output pixels read of a row, four taps of one channel side by side, and one VPDPBUSD multiplies
// them; through shared rows each tap is a multiplication of its own for each channel, three quarters of it by zeros.
#pragma once

#include "avx512_conv.h"

namespace dp {
namespace {

// Output pixels of a permutation, such units of one pass, and the output rows that share what is loaded and permuted.
constexpr int kDepthwisePixels = 4, kDepthwiseUnits = 4, kDepthwiseRows = 4;

// What stays the same over a quad.
template <int G>
struct Depthwise {
  const Epilogue& epilogue;
  const int8_t* weights;
  int kernel_y;
  __m512i outside, bias, index[G];
  __m512 scale;
};

// Rows of the input that some output rows read; of one beyond the image no lane is read.
struct DepthwiseRows {
  const uint8_t* from[kMostTaps + 2 * (kDepthwiseRows - 1)];
  __mmask16 there[kMostTaps + 2 * (kDepthwiseRows - 1)];
};

// Units of an output row: where each begins in a row of the input, which of its sixteen pixels are there, where they go.
struct DepthwiseUnits {
  const int32_t* at;
  const uint16_t* inside;
  uint8_t* out;
  __mmask16 written;
};

inline __m512i four(const void* from) { return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from))); }

template <int U, int G, bool kSwish>
[[gnu::always_inline]] inline void store_depthwise(const Depthwise<G>& how, __m512i (&acc)[U], uint8_t* out, __mmask16 written) {
  const Epilogue& e = how.epilogue;
  unrolled<U>([&](auto u) DP_INLINE { acc[u] = requantize<kSwish, false>(acc[u], how.scale, e, how.bias); });
  constexpr int last = U - 1;
  const __m512i words = _mm512_packs_epi32(acc[0], acc[std::min(1, last)]);
  const __m512i more = U > 2 ? _mm512_packs_epi32(acc[std::min(2, last)], acc[last]) : words;
  // Packing takes the pixels of four registers in turn.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words, more));
  const __m512i low = _mm512_set1_epi8(char(e.low)), high = _mm512_set1_epi8(char(e.high));
  _mm512_mask_storeu_epi32(out, written, _mm512_min_epu8(_mm512_max_epu8(bytes, low), high));
}

template <int U, int G>
[[gnu::always_inline]] inline void load_units(const Depthwise<G>& how, const DepthwiseRows& rows, const DepthwiseUnits& units,
                                              int row, __m512i (&x)[U]) {
  unrolled<U>([&](auto u) DP_INLINE {
    const __mmask16 read = __mmask16(units.inside[u] & rows.there[row]);
    x[u] = _mm512_mask_loadu_epi32(how.outside, read, rows.from[row] + units.at[u]);
  });
}

// Any kernel, one output row: K = 0.
template <int U, int K, int S, int G, bool kSwish>
[[gnu::always_inline]] inline void depthwise_units(const Depthwise<G>& how, const DepthwiseRows& rows,
                                                   const DepthwiseUnits& units, size_t pitch) {
  constexpr int R = K ? kDepthwiseRows : 1;
  __m512i acc[R][U];
  unrolled<R>([&](auto r) DP_INLINE { unrolled<U>([&](auto u) DP_INLINE { acc[r][u] = how.bias; }); });
  if constexpr (K > 0) {
    unrolled<(R - 1) * S + K>([&](auto row) DP_INLINE {
      __m512i x[U], picked[U];
      load_units<U>(how, rows, units, row, x);
      unrolled<G>([&](auto t) DP_INLINE {
        unrolled<U>([&](auto u) DP_INLINE { picked[u] = permute_bytes(how.index[t], x[u]); });
        unrolled<R>([&](auto r) DP_INLINE {
          constexpr int ky = row - r * S;
          if constexpr (ky >= 0 && ky < K) {
            const __m512i taps = four(how.weights + (ky * G + t) * DP_PIXELS);
            unrolled<U>([&](auto u) DP_INLINE { multiply(acc[r][u], picked[u], taps); });
          }
        });
      });
    });
  } else {
    const int8_t* weights = how.weights;
    for (int ky = 0; ky < how.kernel_y; ++ky, weights += G * DP_PIXELS) {
      __m512i x[U];
      load_units<U>(how, rows, units, ky, x);
      unrolled<G>([&](auto t) DP_INLINE {
        const __m512i taps = four(weights + t * DP_PIXELS);
        unrolled<U>([&](auto u) DP_INLINE { multiply(acc[0][u], permute_bytes(how.index[t], x[u]), taps); });
      });
    }
  }
  unrolled<R>([&](auto r) DP_INLINE { store_depthwise<U, G, kSwish>(how, acc[r], units.out + size_t(r) * pitch, units.written); });
}

// Kernels of K rows with a stride of S, some output rows at a time, the last of them twice where they do not divide.
template <int K, int S, int G, bool kSwish>
void depthwise_rows(const Geometry& g, const Packed& packed, const Epilogue& e, const Plane& plane) {
  constexpr int R = K ? kDepthwiseRows : 1;
  const dp_conv_shape& s = g.shape;
  Depthwise<G> how{e,
                   packed.tap_weights.data() + size_t(plane.quad) * size_t(s.kernel_y) * G * DP_PIXELS,
                   s.kernel_y,
                   _mm512_set1_epi32(int32_t(uint32_t(s.input_zero_point) * 0x01010101u)),
                   four(packed.bias.data() + plane.quad * DP_QUAD),
                   {},
                   _mm512_castsi512_ps(four(packed.scale.data() + plane.quad * DP_QUAD))};
  unrolled<G>([&](auto t) DP_INLINE { how.index[t] = load(packed.tap_index.data() + t * kVectorBytes); });
  const int whole = g.width_out / DP_PIXELS * DP_PIXELS, rest = g.width_out - whole;
  const size_t pitch = size_t(g.width_out) * DP_QUAD;
  for (int begin = 0; begin < g.height_out; begin += R) {
    const int oy = std::min(begin, g.height_out - R);
    DepthwiseRows rows;
    for (int row = 0; row < (R - 1) * s.stride_y + s.kernel_y; ++row) {
      const int iy = oy * s.stride_y - s.pad_top + row;
      const bool there = iy >= 0 && iy < s.height;
      rows.from[row] = plane.source + ptrdiff_t(there ? iy : 0) * s.width * DP_QUAD;
      rows.there[row] = there ? __mmask16(-1) : __mmask16(0);
    }
    DepthwiseUnits units{packed.tap_from.data(), packed.tap_inside.data(), plane.out + size_t(oy) * pitch, __mmask16(-1)};
    for (int x = 0; x < whole; x += DP_PIXELS, units.at += kDepthwiseUnits, units.inside += kDepthwiseUnits, units.out += kVectorBytes)
      depthwise_units<4, K, S, G, kSwish>(how, rows, units, pitch);
    units.written = __mmask16((1u << rest) - 1);
    if (rest > 12) depthwise_units<4, K, S, G, kSwish>(how, rows, units, pitch);
    else if (rest > 8) depthwise_units<3, K, S, G, kSwish>(how, rows, units, pitch);
    else if (rest > 4) depthwise_units<2, K, S, G, kSwish>(how, rows, units, pitch);
    else if (rest > 0) depthwise_units<1, K, S, G, kSwish>(how, rows, units, pitch);
  }
}

template <int G, bool kSwish>
void depthwise_of(const Geometry& g, const Packed& packed, const Epilogue& e, const Plane& plane) {
  const int kernel = g.height_out < kDepthwiseRows ? 0 : g.shape.kernel_y, stride = g.shape.stride_y;
  if constexpr (G == 1) {
    if (kernel == 3 && stride == 1) return depthwise_rows<3, 1, G, kSwish>(g, packed, e, plane);
    if (kernel == 3 && stride == 2) return depthwise_rows<3, 2, G, kSwish>(g, packed, e, plane);
  } else {
    if (kernel == 5 && stride == 1) return depthwise_rows<5, 1, G, kSwish>(g, packed, e, plane);
    if (kernel == 5 && stride == 2) return depthwise_rows<5, 2, G, kSwish>(g, packed, e, plane);
    if (kernel == 7 && stride == 1) return depthwise_rows<7, 1, G, kSwish>(g, packed, e, plane);
  }
  depthwise_rows<0, 1, G, kSwish>(g, packed, e, plane);
}

void depthwise(const Geometry& g, const Packed& packed, const Epilogue& e, const Plane& plane) {
  const bool swish = e.has_swish();
  if (packed.tap_groups == 1) return swish ? depthwise_of<1, true>(g, packed, e, plane) : depthwise_of<1, false>(g, packed, e, plane);
  return swish ? depthwise_of<2, true>(g, packed, e, plane) : depthwise_of<2, false>(g, packed, e, plane);
}

} // namespace
} // namespace dp
