// Tiles of shared and of sparse rows for every 256-bit target: eight pixels of four channels a register. Before it includes
// this a target defines `multiply(acc, x, weights)`, acc += x * weights, and kSplitsPairs, see `Target::splits_pairs`; hence
// the unnamed namespace.
#pragma once

#include "avx2_layout.h"
#include "unrolled.h"

namespace dp {
namespace {

// Vectors of a tile, registers of a vector, and those of one pass over shared rows: twelve accumulators, of sixteen registers there
// are.
constexpr int kWidest = 3, kRegisters = 2, kPass = 3;

// Rows of a group: twelve accumulators where there are as many; of paired rows, which take half of a tile at a time from two vectors on,
// up to twelve.
constexpr int rows_for(int vectors, bool paired = false) {
  constexpr int alone[kWidest + 1] = {6, 6, 3, 2}, pairs[kWidest + 1] = {6, 6, 4, 4};
  return paired ? pairs[vectors] : alone[vectors];
}

// What a swish multiplies by. Apart, so that the loops before it keep their accumulators in registers.
[[gnu::noinline]] __m256 swish_gate(__m256 t) {
  t = _mm256_min_ps(_mm256_max_ps(t, _mm256_set1_ps(-kGateEnd)), _mm256_set1_ps(kGateEnd));
  const __m256i column = _mm256_cvtps_epi32(t);
  const __m256 is_second = _mm256_castsi256_ps(_mm256_slli_epi32(column, 28)); // half of the sixteen, in the sign
  __m256 found = _mm256_setzero_ps();
  for (int power = 3; power >= 0; --power) {
    const __m256 first = _mm256_permutevar8x32_ps(_mm256_load_ps(kGate[power]), column);
    const __m256 second = _mm256_permutevar8x32_ps(_mm256_load_ps(kGate[power] + 8), column);
    const __m256 factor = _mm256_blendv_ps(first, second, is_second);
    found = power == 3 ? factor : _mm256_fmadd_ps(found, t, factor);
  }
  return found;
}

// What a sum goes through before it is a byte.
template <bool kSwish, bool kResidual>
[[gnu::always_inline]] inline __m256i requantize(__m256i acc, __m256 scale, const Epilogue& e, __m256i residual) {
  const __m256 shift = _mm256_set1_ps(e.shift);
  __m256 f = _mm256_cvtepi32_ps(acc);
  if (!kSwish) {
    f = _mm256_fmadd_ps(f, scale, shift);
  } else if (f = _mm256_mul_ps(f, scale); e.swish_rate > 0) {
    f = _mm256_fmadd_ps(f, swish_gate(_mm256_mul_ps(f, _mm256_set1_ps(e.swish_rate))), shift);
  } else {
    const __m256 gate = _mm256_fmadd_ps(f, _mm256_set1_ps(e.hard_swish_slope), _mm256_set1_ps(0.5f));
    f = _mm256_fmadd_ps(f, _mm256_min_ps(_mm256_max_ps(gate, _mm256_setzero_ps()), _mm256_set1_ps(1.0f)), shift);
  }
  if (kResidual) {
    f = _mm256_min_ps(_mm256_max_ps(f, _mm256_set1_ps(e.sum_low)), _mm256_set1_ps(e.sum_high));
    f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(residual), _mm256_set1_ps(e.residual_scale), f);
  }
  return _mm256_cvtps_epi32(f);
}

// Lanes of eight that are in the output, moved to the front; and from there back.
struct Moves {
  uint8_t front[256][kLanes] = {}, back[256][kLanes] = {};

  constexpr Moves() {
    for (int bits = 0; bits < 256; ++bits)
      for (int lane = 0, count = 0; lane < kLanes; ++lane)
        if (bits >> lane & 1) {
          back[bits][lane] = uint8_t(count);
          front[bits][count++] = uint8_t(lane);
        }
  }
};
alignas(DP_ALIGN) constexpr Moves kMoves;

inline __m256i move_lanes(__m256i pixels, const uint8_t (&move)[kLanes]) {
  return _mm256_permutevar8x32_epi32(pixels, _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(move))));
}

// Where half `half` of a tile's pixels is in a plane, and which of its lanes are in the output.
struct Place {
  size_t first; // bytes
  unsigned valid, count;

  Place(const Lanes* lanes, int half) {
    const unsigned all = lanes[half / 2].valid, low = all & 255;
    valid = half % 2 ? all >> kLanes : low;
    count = unsigned(__builtin_popcount(valid));
    first = (size_t(lanes[half / 2].first) + (half % 2 ? size_t(__builtin_popcount(low)) : 0)) * DP_QUAD;
  }
  unsigned packed() const { return (1u << count) - 1; }
};

// Eight pixels to and from a plane; the places of those to throw away are not touched.
[[gnu::always_inline]] inline void store_half(uint8_t* plane, const Lanes* lanes, int half, __m256i pixels) {
  if (!lanes) return store(plane + half * kHalf, pixels);
  const Place at(lanes, half);
  _mm256_maskstore_epi32(reinterpret_cast<int*>(plane + at.first), lanes_of(at.packed()), move_lanes(pixels, kMoves.front[at.valid]));
}

[[gnu::always_inline]] inline __m256i load_half(const uint8_t* plane, const Lanes* lanes, int half) {
  if (!lanes) return load(plane + half * kHalf);
  const Place at(lanes, half);
  return move_lanes(load_lanes(plane + at.first, at.packed()), kMoves.back[at.valid]);
}

// 4 x 4 bytes of a lane, channel by channel, to pixel by pixel.
inline __m256i transpose_lanes(__m256i bytes) {
  return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(
                                        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}

[[gnu::always_inline]] inline __m256i clamp(__m256i bytes, const Epilogue& e) {
  return _mm256_min_epu8(_mm256_max_epu8(bytes, _mm256_set1_epi8(char(e.low))), _mm256_set1_epi8(char(e.high)));
}

// SHARED ROWS: all quads of halves begin .. begin + H.
template <int H, bool kSwish, bool kResidual>
void shared_pass(const Tile& tile, int begin) {
  const Packed& packed = *tile.packed;
  const Epilogue& e = *tile.epilogue;
  const uint8_t* source = tile.source + begin * kHalf;
  for (int quad = tile.first; quad < tile.last; ++quad) {
    __m256i acc[DP_QUAD][H];
    unrolled<DP_QUAD>([&](auto r) DP_INLINE {
      const __m256i start = _mm256_set1_epi32(packed.bias[size_t(quad) * DP_QUAD + r]);
      unrolled<H>([&](auto h) DP_INLINE { acc[r][h] = start; });
    });
    const SharedEntry* entry = packed.shared.data() + packed.quads[size_t(quad)].begin;
    for (const SharedEntry* end = entry + packed.quads[size_t(quad)].length; entry != end; ++entry) {
      const uint8_t* from = source + entry->offset;
      unrolled<DP_QUAD>([&](auto r) DP_INLINE {
        const __m256i weights = _mm256_set1_epi32(int32_t(entry->weights[r]));
        unrolled<H>([&](auto h) DP_INLINE { multiply(acc[r][h], load(from + h * kHalf), weights); });
      });
    }
    if constexpr (kSplitsPairs)
      unrolled<DP_QUAD>([&](auto r) DP_INLINE {
        const int32_t* rest = packed.quads[size_t(quad)].rest + r;
        for (const Entry *one = packed.entries.data() + rest[0], *end = packed.entries.data() + rest[1]; one != end; ++one) {
          const __m256i weights = _mm256_set1_epi32(int32_t(one->weights));
          unrolled<H>([&](auto h) DP_INLINE { multiply(acc[r][h], load(source + one->offset + h * kHalf), weights); });
        }
      });
    const float* scale = packed.scale.data() + quad * DP_QUAD;
    uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
    const uint8_t* residual = kResidual ? tile.residual + size_t(quad) * tile.out_plane : nullptr;
    unrolled<H>([&](auto h) DP_INLINE {
      const __m256i r = kResidual ? load_half(residual, tile.lanes, begin + h) : _mm256_setzero_si256();
      __m256i row[DP_QUAD];
      unrolled<DP_QUAD>([&](auto i) DP_INLINE {
        const __m256i byte = _mm256_and_si256(_mm256_srli_epi32(r, 8 * i), _mm256_set1_epi32(255));
        row[i] = requantize<kSwish, kResidual>(acc[i][h], _mm256_set1_ps(scale[i]), e, byte);
      });
      const __m256i words = _mm256_packs_epi32(row[0], row[1]), more = _mm256_packs_epi32(row[2], row[3]);
      store_half(out, tile.lanes, begin + h, transpose_lanes(clamp(_mm256_packus_epi16(words, more), e)));
    });
  }
}

// SPARSE ROWS: one row's bytes of two vectors of pixels a register, in the order in which `interleave` wants them.
constexpr int planar_bytes(int vectors) { return (vectors + 1) / 2 * kHalf; }

template <int H, bool kSwish, bool kResidual>
[[gnu::always_inline]] inline void store_row(const __m256i (&acc)[H], float row_scale, const Epilogue& e,
                                             const uint8_t* residual, uint8_t* to) {
  const __m256 scale = _mm256_set1_ps(row_scale);
  unrolled<(H + 3) / 4>([&](auto four) DP_INLINE {
    __m256i part[4];
    unrolled<4>([&](auto i) DP_INLINE {
      constexpr int h = four * 4 + i;
      if constexpr (h >= H) {
        part[i] = part[i - 1];
      } else {
        __m256i r = _mm256_setzero_si256();
        if constexpr (kResidual)
          r = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(residual + h * kHalf)));
        part[i] = requantize<kSwish, kResidual>(acc[h], scale, e, r);
      }
    });
    const __m256i words = _mm256_packs_epi32(part[0], part[1]), more = _mm256_packs_epi32(part[2], part[3]);
    store(to + four * kHalf, _mm256_packus_epi16(words, more));
  });
}

// Rows of a block to quads.
template <int H>
void interleave(const uint8_t* planar, const Tile& tile, int first, int last) {
  constexpr int kRow = planar_bytes(H / 2);
  for (int quad = first; quad < last; ++quad, planar += DP_QUAD * kRow) {
    uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
    for (int half = 0; half < H; half += 4) {
      __m256i row[DP_QUAD];
      for (int r = 0; r < DP_QUAD; ++r) row[r] = clamp(load(planar + r * kRow + half / 4 * kHalf), *tile.epilogue);
      const __m256i a = _mm256_unpacklo_epi8(row[0], row[1]), b = _mm256_unpacklo_epi8(row[2], row[3]);
      const __m256i c = _mm256_unpackhi_epi8(row[0], row[1]), d = _mm256_unpackhi_epi8(row[2], row[3]);
      const __m256i pixels[4] = {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b), _mm256_unpacklo_epi16(c, d),
                                 _mm256_unpackhi_epi16(c, d)};
      for (int i = 0; i < 4 && half + i < H; ++i) store_half(out, tile.lanes, half + i, pixels[i]);
    }
  }
}

// Quads to rows: each half's four channels apart, eight pixels of one after the other's. Once for a block, because its rows
// come in any order.
template <int H>
void part_rows(const Tile& tile, int first, int last, uint8_t* to) {
  const __m256i apart = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int quad = first; quad < last; ++quad) {
    const uint8_t* from = tile.residual + size_t(quad) * tile.out_plane;
    for (int h = 0; h < H; ++h, to += kHalf)
      store(to, _mm256_permutevar8x32_epi32(transpose_lanes(load_half(from, tile.lanes, h)), apart));
  }
}

// The sums of a group's rows.
template <int R, int H>
[[gnu::always_inline]] inline void accumulate(const Tile& tile, const RowGroup& group, const GroupedRow* rows,
                                              __m256i (&acc)[R][H]) {
  unrolled<R>([&](auto r) DP_INLINE {
    const __m256i start = _mm256_set1_epi32(rows[r].bias);
    unrolled<H>([&](auto h) DP_INLINE { acc[r][h] = start; });
  });
  const Entry* entry = tile.packed->entries.data() + group.begin;
  for (const Entry* end = entry + size_t(group.length) * R; entry != end; entry += R)
    unrolled<R>([&](auto r) DP_INLINE {
      const __m256i weights = _mm256_set1_epi32(int32_t(entry[r].weights));
      const uint8_t* from = tile.source + entry[r].offset;
      unrolled<H>([&](auto h) DP_INLINE { multiply(acc[r][h], load(from + h * kHalf), weights); });
    });
}

// The same of paired rows, P halves of a vector at a time, so that all accumulators stay in registers.
template <int P, int R, int H>
[[gnu::always_inline]] inline void accumulate_pairs(const Tile& tile, const RowGroup& group, const GroupedRow* rows,
                                                    __m256i (&sums)[R][H]) {
  static_assert(H % P == 0, "whole passes");
  for (int begin = 0; begin < H; begin += P) {
    __m256i acc[R][P];
    unrolled<R>([&](auto r) DP_INLINE {
      const __m256i start = _mm256_set1_epi32(rows[r].bias);
      unrolled<P>([&](auto h) DP_INLINE { acc[r][h] = start; });
    });
    const uint8_t* source = tile.source + begin * kHalf;
    const PairEntry* pair = tile.packed->pairs.data() + group.begin;
    for (const PairEntry* end = pair + size_t(group.length) * (R / 2); pair != end; pair += R / 2)
      unrolled<R / 2>([&](auto p) DP_INLINE {
        const __m256i even = _mm256_set1_epi32(int32_t(pair[p].weights[0]));
        const __m256i odd = _mm256_set1_epi32(int32_t(pair[p].weights[1]));
        unrolled<P>([&](auto h) DP_INLINE {
          const __m256i x = load(source + pair[p].offset + h * kHalf);
          multiply(acc[2 * p][h], x, even);
          multiply(acc[2 * p + 1][h], x, odd);
        });
      });
    unrolled<R>([&](auto r) DP_INLINE { unrolled<P>([&](auto h) DP_INLINE { sums[r][begin + h] = acc[r][h]; }); });
  }
}

template <bool kPaired, int R, int V, bool kSwish, bool kResidual>
void sparse_block(const Tile& tile, int first) {
  constexpr int H = 2 * V, kRow = planar_bytes(V);
  const Packed& packed = *tile.packed;
  alignas(DP_ALIGN) uint8_t planar[(kBlockRows + 1) * kRow];
  // The rows that fill up the last group read a residual too, of any value.
  alignas(DP_ALIGN) uint8_t parted[kResidual ? (kBlockQuads + 1) * V * kVectorBytes : 1];
  const int last = std::min(tile.last, first + kBlockQuads);
  if (kResidual) part_rows<H>(tile, first, last, parted);
  const int32_t* groups = packed.block_groups.data() + first / kBlockQuads;
  const GroupedRow* rows = packed.grouped.data() + size_t(groups[0]) * R;
  for (int group = groups[0]; group < groups[1]; ++group, rows += R) {
    __m256i acc[R][H];
    if constexpr (kPaired)
      accumulate_pairs<V == 1 ? H : V>(tile, packed.groups[size_t(group)], rows, acc);
    else
      accumulate(tile, packed.groups[size_t(group)], rows, acc);
    unrolled<R>([&](auto r) DP_INLINE {
      const unsigned row = unsigned(rows[r].row);
      const uint8_t* residual = parted + row / DP_QUAD * V * kVectorBytes + row % DP_QUAD * kLanes;
      store_row<H, kSwish, kResidual>(acc[r], rows[r].scale, *tile.epilogue, residual, planar + row * kRow);
    });
  }
  interleave<H>(planar, tile, first, last);
}

} // namespace
} // namespace dp

#include "vector_tile.h"
