// Tiles of shared and of sparse rows for every AVX-512 target: sixteen pixels of four channels a register; a step
// multiplies them by four weights. Each target compiles this for its own instructions, hence the unnamed namespace.
#pragma once

#include <immintrin.h>

#include <algorithm>

#include "avx512_layout.h"
#include "unrolled.h"

namespace dp {
namespace {

// Vectors of a tile, registers of a vector, and those of one pass over shared rows: 24 accumulators.
constexpr int kWidest = 8, kRegisters = 1, kPass = 6;

// Rows of a group: some sixteen accumulators, enough to hide a multiplication's latency; what rounds them needs the rest.
constexpr int rows_for(int vectors, bool paired = false) {
  constexpr int alone[kWidest + 1] = {8, 8, 8, 6, 4, 4, 3, 3, 2}, pairs[kWidest + 1] = {8, 8, 8, 6, 4, 4, 4, 2, 2};
  return paired ? pairs[vectors] : alone[vectors];
}

// acc += x * weights. As assembly, because the compiler keeps copies of the accumulators around its own intrinsic.
[[gnu::always_inline]] inline void multiply(__m512i& acc, __m512i x, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(weights));
}

// What a swish multiplies by.
[[gnu::always_inline]] inline __m512 swish_gate(__m512 t) {
  t = _mm512_min_ps(_mm512_max_ps(t, _mm512_set1_ps(-kGateEnd)), _mm512_set1_ps(kGateEnd));
  const __m512i column = _mm512_cvtps_epi32(t); // of which the permutation reads the last four bits
  const auto factor = [&](int power) { return _mm512_permutexvar_ps(column, _mm512_load_ps(kGate[power])); };
  const __m512 found = _mm512_fmadd_ps(_mm512_fmadd_ps(factor(3), t, factor(2)), t, factor(1));
  return _mm512_fmadd_ps(found, t, factor(0));
}

// What a sum goes through before it is a byte. Which swish it is, is asked here: a branch is cheaper than twice the code.
template <bool kSwish, bool kResidual>
[[gnu::always_inline]] inline __m512i requantize(__m512i acc, __m512 scale, const Epilogue& e, __m512i residual) {
  const __m512 shift = _mm512_set1_ps(e.shift);
  __m512 f = _mm512_cvtepi32_ps(acc);
  if (kSwish) {
    f = _mm512_mul_ps(f, scale);
    if (e.swish_rate > 0) {
      f = _mm512_fmadd_ps(f, swish_gate(_mm512_mul_ps(f, _mm512_set1_ps(e.swish_rate))), shift);
    } else {
      const __m512 gate = _mm512_fmadd_ps(f, _mm512_set1_ps(e.hard_swish_slope), _mm512_set1_ps(0.5f));
      f = _mm512_fmadd_ps(f, _mm512_min_ps(_mm512_max_ps(gate, _mm512_setzero_ps()), _mm512_set1_ps(1.0f)), shift);
    }
  } else {
    f = _mm512_fmadd_ps(f, scale, shift);
  }
  if (kResidual) {
    f = _mm512_min_ps(_mm512_max_ps(f, _mm512_set1_ps(e.sum_low)), _mm512_set1_ps(e.sum_high));
    f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(residual), _mm512_set1_ps(e.residual_scale), f);
  }
  return _mm512_cvtps_epi32(f);
}

// Sixteen pixels to and from a plane; the places of those to throw away are not touched.
[[gnu::always_inline]] inline void store_pixels(uint8_t* plane, const Lanes* lanes, int v, __m512i pixels) {
  if (!lanes) return _mm512_store_si512(plane + v * kVectorBytes, pixels);
  const Lanes& at = lanes[v];
  uint8_t* to = plane + size_t(at.first) * DP_QUAD;
  _mm512_mask_storeu_epi32(to, at.packed, _mm512_maskz_compress_epi32(at.valid, pixels));
}

[[gnu::always_inline]] inline __m512i load_pixels(const uint8_t* plane, const Lanes* lanes, int v) {
  if (!lanes) return load(plane + v * kVectorBytes);
  const Lanes& at = lanes[v];
  return _mm512_maskz_expand_epi32(at.valid, _mm512_maskz_loadu_epi32(at.packed, plane + size_t(at.first) * DP_QUAD));
}

// Channel `i` of each pixel of a vector.
[[gnu::always_inline]] inline __m512i byte_of(__m512i pixels, int i) {
  return i == 3 ? _mm512_srli_epi32(pixels, 24)
                : _mm512_and_si512(_mm512_srli_epi32(pixels, unsigned(8 * i)), _mm512_set1_epi32(255));
}

// 4 x 4 bytes of a lane, channel by channel, to pixel by pixel.
inline __m512i transpose_lanes(__m512i bytes) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
}

// SHARED ROWS.
template <int V, bool kSwish, bool kResidual>
[[gnu::always_inline]] inline void store_quad(const __m512i (&acc)[DP_QUAD][V], const Tile& tile, int quad, int begin) {
  const Epilogue& e = *tile.epilogue;
  const bool clamps = e.low > 0 || e.high < 255; // the packing has clamped to 0..255 already
  const __m512i low = _mm512_set1_epi8(char(e.low)), high = _mm512_set1_epi8(char(e.high));
  const float* scale = tile.packed->scale.data() + quad * DP_QUAD;
  uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
  const uint8_t* residual = kResidual ? tile.residual + size_t(quad) * tile.out_plane : nullptr;
  unrolled<V>([&](auto v) DP_INLINE {
    const __m512i r = kResidual ? load_pixels(residual, tile.lanes, begin + v) : _mm512_setzero_si512();
    __m512i row[DP_QUAD];
    unrolled<DP_QUAD>([&](auto i) DP_INLINE {
      row[i] = requantize<kSwish, kResidual>(acc[i][v], _mm512_set1_ps(scale[i]), e, byte_of(r, i));
    });
    const __m512i first = _mm512_packs_epi32(row[0], row[1]);
    const __m512i second = _mm512_packs_epi32(row[2], row[3]);
    __m512i bytes = _mm512_packus_epi16(first, second);
    if (clamps) bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, low), high);
    store_pixels(out, tile.lanes, begin + v, transpose_lanes(bytes));
  });
}

// Fetches what comes next, one plane at a time. A tile touches short pieces of many planes, which no prefetcher of a CPU
// sees through; activations of early layers lie in the third-level cache or beyond.
struct Ahead {
  const uint8_t* base;
  size_t stride;
  int plane, last;

  template <int V, bool kWrite>
  [[gnu::always_inline]] inline void fetch() {
    if (plane >= last) return;
    const uint8_t* at = base + size_t(plane++) * stride;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) __builtin_prefetch(at + v * kVectorBytes, kWrite);
  }
};

// Quads between the one whose sums are made and the one whose bytes are fetched.
constexpr int kAheadQuads = 4;

// All quads of vectors begin .. begin + V.
template <int V, bool kSwish, bool kResidual>
void shared_pass(const Tile& tile, int begin) {
  const Packed& packed = *tile.packed;
  const uint8_t* source = tile.source + begin * kVectorBytes;
  const size_t written = tile.lanes ? size_t(tile.lanes[begin].first) * DP_QUAD : size_t(begin) * kVectorBytes;
  Ahead out{tile.out + written, tile.out_plane, tile.first + kAheadQuads, tile.last};
  Ahead added{tile.residual + written, tile.out_plane, kResidual ? tile.first + kAheadQuads : tile.last, tile.last};
  for (int quad = tile.first; quad < tile.last; ++quad) {
    out.fetch<V, true>();
    if (kResidual) added.fetch<V, false>();
    const int32_t* bias = packed.bias.data() + quad * DP_QUAD;
    __m512i acc[DP_QUAD][V];
    unrolled<DP_QUAD>([&](auto r) DP_INLINE {
      const __m512i start = _mm512_set1_epi32(bias[r]);
      unrolled<V>([&](auto v) DP_INLINE { acc[r][v] = start; });
    });
    const SharedEntry* entry = packed.shared.data() + packed.quads[quad].begin;
    for (const SharedEntry* end = entry + packed.quads[quad].length; entry != end; ++entry) {
      const uint8_t* from = source + entry->offset;
      __m512i weights[DP_QUAD];
      unrolled<DP_QUAD>([&](auto r) DP_INLINE { weights[r] = _mm512_set1_epi32(int32_t(entry->weights[r])); });
      unrolled<V>([&](auto v) DP_INLINE {
        const __m512i x = load(from + v * kVectorBytes);
        unrolled<DP_QUAD>([&](auto r) DP_INLINE { multiply(acc[r][v], x, weights[r]); });
      });
    }
    store_quad<V, kSwish, kResidual>(acc, tile, quad, begin);
  }
}

// SPARSE ROWS: one row's bytes of four vectors of pixels, in the order in which `interleave` wants them.
template <int V>
constexpr int kPlanarBytes = (V + 3) / 4 * kVectorBytes;
// Four vectors of a row, from vector `first` on.
template <int V, int first, bool kSwish, bool kResidual>
[[gnu::always_inline]] inline void store_four(const __m512i (&acc)[V], __m512 scale, const Epilogue& e,
                                              const uint8_t* residual, uint8_t* to) {
  __m512i row[4];
  unrolled<4>([&](auto i) DP_INLINE {
    if constexpr (first + i >= V) {
      row[i] = row[i - 1];
    } else {
      __m512i r = _mm512_setzero_si512();
      if constexpr (kResidual)
        r = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(residual + (first + i) * kVectorBytes)));
      row[i] = requantize<kSwish, kResidual>(acc[first + i], scale, e, r);
    }
  });
  const __m512i words = _mm512_packs_epi32(row[0], row[1]), more = _mm512_packs_epi32(row[2], row[3]);
  _mm512_store_si512(to + first / 4 * kVectorBytes, _mm512_packus_epi16(words, more));
}

// `residual` is the row's first sixteen pixels as `part_rows` left them.
template <int V, bool kSwish, bool kResidual>
[[gnu::always_inline]] inline void store_row(const __m512i (&acc)[V], float row_scale, const Epilogue& e,
                                             const uint8_t* residual, uint8_t* to) {
  static_assert(V <= 8, "a row is stored in at most two pieces");
  const __m512 scale = _mm512_set1_ps(row_scale);
  store_four<V, 0, kSwish, kResidual>(acc, scale, e, residual, to);
  if constexpr (V > 4) store_four<V, 4, kSwish, kResidual>(acc, scale, e, residual, to);
}

// Rows of a block to quads: what store_row packed lane by lane falls into place by interleaving bytes, then pairs.
template <int V>
void interleave(const uint8_t* planar, const Tile& tile, int first, int last) {
  // The packing has clamped to 0..255 already.
  const bool clamps = tile.epilogue->low > 0 || tile.epilogue->high < 255;
  const __m512i low = _mm512_set1_epi8(char(tile.epilogue->low)), high = _mm512_set1_epi8(char(tile.epilogue->high));
  for (int quad = first; quad < last; ++quad, planar += DP_QUAD * kPlanarBytes<V>) {
    uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
    for (int v = 0; v < V; v += 4) {
      __m512i row[DP_QUAD], pair[4];
#pragma GCC unroll 4
      for (int r = 0; r < DP_QUAD; ++r) {
        row[r] = _mm512_load_si512(planar + r * kPlanarBytes<V> + v / 4 * kVectorBytes);
        if (clamps) row[r] = _mm512_min_epu8(_mm512_max_epu8(row[r], low), high);
      }
      pair[0] = _mm512_unpacklo_epi8(row[0], row[1]);
      pair[1] = _mm512_unpacklo_epi8(row[2], row[3]);
      pair[2] = _mm512_unpackhi_epi8(row[0], row[1]);
      pair[3] = _mm512_unpackhi_epi8(row[2], row[3]);
      const __m512i pixels[4] = {_mm512_unpacklo_epi16(pair[0], pair[1]), _mm512_unpackhi_epi16(pair[0], pair[1]),
                                 _mm512_unpacklo_epi16(pair[2], pair[3]), _mm512_unpackhi_epi16(pair[2], pair[3])};
      for (int i = 0; i < 4 && v + i < V; ++i) store_pixels(out, tile.lanes, v + i, pixels[i]);
    }
  }
}

// Quads to rows: each vector's four channels apart, sixteen pixels of one after the other's. Once for a block, because
// its rows come in any order, and reading pieces of the same residual again and again costs more than this.
template <int V>
void part_rows(const Tile& tile, int first, int last, uint8_t* to) {
  const __m512i lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int quad = first; quad < last; ++quad) {
    const uint8_t* from = tile.residual + size_t(quad) * tile.out_plane;
    for (int v = 0; v < V; ++v, to += kVectorBytes)
      _mm512_store_si512(to, _mm512_permutexvar_epi32(lanes, transpose_lanes(load_pixels(from, tile.lanes, v))));
  }
}

// The sums of a group's rows.
template <bool kPaired, int R, int V>
[[gnu::always_inline]] inline void accumulate(const Tile& tile, const RowGroup& group, const GroupedRow* rows,
                                              __m512i (&acc)[R][V]) {
  unrolled<R>([&](auto r) DP_INLINE {
    const __m512i start = _mm512_set1_epi32(rows[r].bias);
    unrolled<V>([&](auto v) DP_INLINE { acc[r][v] = start; });
  });
  if constexpr (kPaired) {
    const PairEntry* pair = tile.packed->pairs.data() + group.begin;
    for (const PairEntry* end = pair + size_t(group.length) * (R / 2); pair != end; pair += R / 2)
      unrolled<R / 2>([&](auto p) DP_INLINE {
        const __m512i even = _mm512_set1_epi32(int32_t(pair[p].weights[0]));
        const __m512i odd = _mm512_set1_epi32(int32_t(pair[p].weights[1]));
        const uint8_t* from = tile.source + pair[p].offset;
        unrolled<V>([&](auto v) DP_INLINE {
          const __m512i x = load(from + v * kVectorBytes);
          multiply(acc[2 * p][v], x, even);
          multiply(acc[2 * p + 1][v], x, odd);
        });
      });
    return;
  }
  const Entry* entry = tile.packed->entries.data() + group.begin;
  for (const Entry* end = entry + size_t(group.length) * R; entry != end; entry += R)
    unrolled<R>([&](auto r) DP_INLINE {
      const __m512i weights = _mm512_set1_epi32(int32_t(entry[r].weights));
      const uint8_t* from = tile.source + entry[r].offset;
      unrolled<V>([&](auto v) DP_INLINE { multiply(acc[r][v], load(from + v * kVectorBytes), weights); });
    });
}

// The same, left in memory: beside a long epilogue the compiler would keep writing the accumulators there in the loop.
template <bool kPaired, int R, int V>
[[gnu::noinline]] void accumulate_apart(const Tile& tile, const RowGroup& group, const GroupedRow* rows,
                                        __m512i (&sums)[R][V]) {
  __m512i acc[R][V];
  accumulate<kPaired>(tile, group, rows, acc);
  unrolled<R>([&](auto r) DP_INLINE { unrolled<V>([&](auto v) DP_INLINE { sums[r][v] = acc[r][v]; }); });
}

template <bool kPaired, int R, int V, bool kSwish, bool kResidual>
void sparse_block(const Tile& tile, int first) {
  const Packed& packed = *tile.packed;
  alignas(DP_ALIGN) uint8_t planar[(kBlockRows + 1) * kPlanarBytes<V>];
  // The rows that fill up the last group read a residual too, of any value.
  alignas(DP_ALIGN) uint8_t parted[kResidual ? (kBlockQuads + 1) * V * kVectorBytes : 1];
  const int last = std::min(tile.last, first + kBlockQuads);
  if (kResidual) part_rows<V>(tile, first, last, parted);
  const int32_t* groups = packed.block_groups.data() + first / kBlockQuads;
  const GroupedRow* rows = packed.grouped.data() + size_t(groups[0]) * R;
  Ahead out{tile.out, tile.out_plane, tile.lanes ? last : first, last};
  Ahead next{tile.residual + V * kVectorBytes, tile.out_plane, kResidual && !tile.lanes ? first : last, last};
  for (int group = groups[0]; group < groups[1]; ++group, rows += R) {
    out.fetch<V, true>();
    if (kResidual) next.fetch<V, false>();
    __m512i acc[R][V];
    if constexpr (kSwish)
      accumulate_apart<kPaired>(tile, packed.groups[group], rows, acc);
    else
      accumulate<kPaired>(tile, packed.groups[group], rows, acc);
    unrolled<R>([&](auto r) DP_INLINE {
      const unsigned row = unsigned(rows[r].row);
      const uint8_t* residual = parted + row / DP_QUAD * V * kVectorBytes + row % DP_QUAD * DP_PIXELS;
      store_row<V, kSwish, kResidual>(acc[r], rows[r].scale, *tile.epilogue, residual, planar + row * kPlanarBytes<V>);
    });
  }
  interleave<V>(planar, tile, first, last);
}

} // namespace
} // namespace dp

#include "vector_tile.h"
