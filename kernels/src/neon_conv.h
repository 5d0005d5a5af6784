// Tiles of shared and of sparse rows for every NEON target: four pixels of four channels a register. Before it includes this a target
// defines kFlip (see neon_layout.h), `multiply<lane>(acc, x, weights)`, acc += x * four weights of that lane, shared_sums, the sums of
// a quad's rows, and kPass, the registers of one pass over these; hence the unnamed namespace.
#pragma once

#include "neon_layout.h"
#include "unrolled.h"

namespace dp {
namespace {

// Vectors of a tile: up to 24 accumulators, of 32 registers there are.
constexpr int kWidest = 3;

// Rows of a group: up to 24 accumulators. Two rows, one pair, are enough of those where a tile has two vectors.
constexpr int rows_for(int vectors, bool paired = false) {
  constexpr int alone[kWidest + 1] = {6, 6, 3, 2}, pairs[kWidest + 1] = {6, 6, 2, 2};
  return paired ? pairs[vectors] : alone[vectors];
}

// What a swish multiplies by. Apart, so that the loops before it keep their accumulators in registers.
[[gnu::noinline]] float32x4_t swish_gate(float32x4_t t) {
  t = vminq_f32(vmaxq_f32(t, vdupq_n_f32(-kGateEnd)), vdupq_n_f32(kGateEnd));
  const uint32x4_t column = vandq_u32(vreinterpretq_u32_s32(vcvtnq_s32_f32(t)), vdupq_n_u32(15));
  const uint8x16_t bytes = vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100u), column, 0x04040404u)); // of floats
  const auto factor = [&](int power) {
    const auto* from = reinterpret_cast<const uint8_t*>(kGate[power]);
    const uint8x16x4_t table = {{load(from), load(from + 16), load(from + 32), load(from + 48)}};
    return vreinterpretq_f32_u8(vqtbl4q_u8(table, bytes));
  };
  return vfmaq_f32(factor(0), vfmaq_f32(factor(1), vfmaq_f32(factor(2), factor(3), t), t), t);
}

// What a sum goes through before it is a byte.
template <bool kSwish, bool kResidual>
[[gnu::always_inline]] inline int32x4_t requantize(int32x4_t acc, float scale, const Epilogue& e, uint32x4_t residual) {
  const float32x4_t shift = vdupq_n_f32(e.shift);
  float32x4_t f = vcvtq_f32_s32(acc);
  if (!kSwish) {
    f = vfmaq_n_f32(shift, f, scale);
  } else if (f = vmulq_n_f32(f, scale); e.swish_rate > 0) {
    f = vfmaq_f32(shift, f, swish_gate(vmulq_n_f32(f, e.swish_rate)));
  } else {
    const float32x4_t gate = vfmaq_n_f32(vdupq_n_f32(0.5f), f, e.hard_swish_slope);
    f = vfmaq_f32(shift, f, vminq_f32(vmaxq_f32(gate, vdupq_n_f32(0.0f)), vdupq_n_f32(1.0f)));
  }
  if (kResidual) {
    f = vminq_f32(vmaxq_f32(f, vdupq_n_f32(e.sum_low)), vdupq_n_f32(e.sum_high));
    f = vfmaq_n_f32(f, vcvtq_f32_u32(residual), e.residual_scale);
  }
  return vcvtnq_s32_f32(f);
}

// Sixteen sums to bytes, limited to 0..255.
[[gnu::always_inline]] inline uint8x16_t narrow(const int32x4_t (&part)[4]) {
  const int16x8_t words = vqmovn_high_s32(vqmovn_s32(part[0]), part[1]), more = vqmovn_high_s32(vqmovn_s32(part[2]), part[3]);
  return vqmovun_high_s16(vqmovun_s16(words), more);
}

[[gnu::always_inline]] inline uint8x16_t clamp(uint8x16_t bytes, const Epilogue& e) {
  return vminq_u8(vmaxq_u8(bytes, vdupq_n_u8(uint8_t(e.low))), vdupq_n_u8(uint8_t(e.high)));
}

// 4 x 4 bytes, channel by channel, to pixel by pixel; and back.
[[gnu::always_inline]] inline uint8x16_t transpose_lanes(uint8x16_t bytes) {
  alignas(kRegisterBytes) static constexpr uint8_t kOrder[] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
  return vqtbl1q_u8(bytes, load(kOrder));
}

// Pixels of four lanes that are in the output, moved to the front; and from there back. Beyond a register: zero.
struct Moves {
  uint8_t front[16][kRegisterBytes] = {}, back[16][kRegisterBytes] = {};

  constexpr Moves() {
    for (int bits = 0; bits < 16; ++bits)
      for (int lane = 0, count = 0; lane < kLanes; ++lane)
        if (bits >> lane & 1) {
          for (int i = 0; i < DP_QUAD; ++i) {
            back[bits][lane * DP_QUAD + i] = uint8_t(count * DP_QUAD + i);
            front[bits][count * DP_QUAD + i] = uint8_t(lane * DP_QUAD + i);
          }
          ++count;
        }
  }
};
alignas(DP_ALIGN) constexpr Moves kMoves;

// Where register `number` of a tile's pixels is in a plane, and which of its lanes are in the output.
struct Place {
  size_t first; // bytes
  unsigned valid, count;

  Place(const Lanes* lanes, int number) {
    const unsigned all = lanes[number / kRegisters].valid;
    const int from = number % kRegisters * kLanes;
    valid = all >> from & 15u;
    count = unsigned(__builtin_popcount(valid));
    first = (size_t(lanes[number / kRegisters].first) + size_t(__builtin_popcount(all & ((1u << from) - 1)))) * DP_QUAD;
  }
  unsigned packed() const { return (1u << count) - 1; }
};

// Four pixels to and from a plane; the places of those to throw away are not touched.
[[gnu::always_inline]] inline void store_register(uint8_t* plane, const Lanes* lanes, int number, uint8x16_t pixels) {
  if (!lanes) return vst1q_u8(plane + number * kRegisterBytes, pixels);
  const Place at(lanes, number);
  if (at.count == kLanes) return vst1q_u8(plane + at.first, pixels);
  alignas(kRegisterBytes) uint8_t bytes[kRegisterBytes];
  vst1q_u8(bytes, vqtbl1q_u8(pixels, load(kMoves.front[at.valid])));
  for (unsigned i = 0; i < at.count; ++i) std::memcpy(plane + at.first + i * DP_QUAD, bytes + i * DP_QUAD, DP_QUAD);
}

[[gnu::always_inline]] inline uint8x16_t load_register(const uint8_t* plane, const Lanes* lanes, int number) {
  if (!lanes) return load(plane + number * kRegisterBytes);
  const Place at(lanes, number);
  if (at.count == kLanes) return load(plane + at.first);
  const uint32x4_t there = with_lanes<1>(vdupq_n_u32(0), plane + at.first, at.packed());
  return vqtbl1q_u8(vreinterpretq_u8_u32(there), load(kMoves.back[at.valid]));
}

// SHARED ROWS: all quads of registers begin .. begin + N.
template <int N, bool kSwish, bool kResidual>
void shared_pass(const Tile& tile, int begin) {
  const Packed& packed = *tile.packed;
  const Epilogue& e = *tile.epilogue;
  const uint8_t* source = tile.source + begin * kRegisterBytes;
  for (int quad = tile.first; quad < tile.last; ++quad) {
    int32x4_t acc[DP_QUAD][N];
    shared_sums<N>(packed, quad, source, acc);
    const float* scale = packed.scale.data() + quad * DP_QUAD;
    uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
    const uint8_t* residual = kResidual ? tile.residual + size_t(quad) * tile.out_plane : nullptr;
    unrolled<N>([&](auto n) DP_INLINE {
      const uint32x4_t r = kResidual ? vreinterpretq_u32_u8(load_register(residual, tile.lanes, begin + n)) : vdupq_n_u32(0);
      int32x4_t row[DP_QUAD];
      unrolled<DP_QUAD>([&](auto i) DP_INLINE {
        const uint32x4_t byte = vandq_u32(vshlq_u32(r, vdupq_n_s32(-8 * i)), vdupq_n_u32(255));
        row[i] = requantize<kSwish, kResidual>(acc[i][n], scale[i], e, byte);
      });
      store_register(out, tile.lanes, begin + n, transpose_lanes(clamp(narrow(row), e)));
    });
  }
}

// SPARSE ROWS: one row's sixteen bytes of each vector of pixels.
template <int V, bool kSwish, bool kResidual>
[[gnu::always_inline]] inline void store_row(const int32x4_t (&acc)[V * kRegisters], float scale, const Epilogue& e,
                                             const uint8_t* residual, uint8_t* to) {
  unrolled<V>([&](auto v) DP_INLINE {
    const uint8x16_t bytes = kResidual ? load(residual + v * kVectorBytes) : vdupq_n_u8(0);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    const uint32x4_t added[kRegisters] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)),
                                          vmovl_high_u16(high)};
    int32x4_t part[kRegisters];
    unrolled<kRegisters>([&](auto i) DP_INLINE {
      part[i] = requantize<kSwish, kResidual>(acc[v * kRegisters + i], scale, e, added[i]);
    });
    vst1q_u8(to + v * kRegisterBytes, clamp(narrow(part), e));
  });
}

// Rows of a block to quads.
template <int V>
void interleave(const uint8_t* planar, const Tile& tile, int first, int last) {
  constexpr int kRow = V * kRegisterBytes;
  for (int quad = first; quad < last; ++quad, planar += DP_QUAD * kRow) {
    uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
    for (int v = 0; v < V; ++v) {
      uint8x16_t row[DP_QUAD];
      for (int r = 0; r < DP_QUAD; ++r) row[r] = load(planar + r * kRow + v * kRegisterBytes);
      const auto pairs = [](uint8x16_t x) { return vreinterpretq_u16_u8(x); };
      const uint16x8_t a = pairs(vzip1q_u8(row[0], row[1])), b = pairs(vzip1q_u8(row[2], row[3]));
      const uint16x8_t c = pairs(vzip2q_u8(row[0], row[1])), d = pairs(vzip2q_u8(row[2], row[3]));
      const uint16x8_t pixels[kRegisters] = {vzip1q_u16(a, b), vzip2q_u16(a, b), vzip1q_u16(c, d), vzip2q_u16(c, d)};
      for (int i = 0; i < kRegisters; ++i) store_register(out, tile.lanes, v * kRegisters + i, vreinterpretq_u8_u16(pixels[i]));
    }
  }
}

// Quads to rows: each vector's four channels apart. Once for a block, because its rows come in any order.
template <int V>
void part_rows(const Tile& tile, int first, int last, uint8_t* to) {
  for (int quad = first; quad < last; ++quad) {
    const uint8_t* from = tile.residual + size_t(quad) * tile.out_plane;
    for (int v = 0; v < V; ++v, to += kVectorBytes) {
      uint8x16_t x[kRegisters];
      for (int i = 0; i < kRegisters; ++i) x[i] = load_register(from, tile.lanes, v * kRegisters + i);
      const uint8x16_t a = vuzp1q_u8(x[0], x[1]), b = vuzp1q_u8(x[2], x[3]); // channels 0 and 2
      const uint8x16_t c = vuzp2q_u8(x[0], x[1]), d = vuzp2q_u8(x[2], x[3]); // 1 and 3
      const uint8x16_t row[DP_QUAD] = {vuzp1q_u8(a, b), vuzp1q_u8(c, d), vuzp2q_u8(a, b), vuzp2q_u8(c, d)};
      for (int r = 0; r < DP_QUAD; ++r) vst1q_u8(to + r * kRegisterBytes, row[r]);
    }
  }
}

// The sums of a group's rows. One load has the weights of two entries, in its second and its fourth lane.
template <bool kPaired, int R, int N>
[[gnu::always_inline]] inline void accumulate(const Tile& tile, const RowGroup& group, const GroupedRow* rows,
                                              int32x4_t (&acc)[R][N]) {
  unrolled<R>([&](auto r) DP_INLINE {
    const int32x4_t start = vdupq_n_s32(rows[r].bias);
    unrolled<N>([&](auto n) DP_INLINE { acc[r][n] = start; });
  });
  if constexpr (kPaired) {
    const PairEntry* pair = tile.packed->pairs.data() + group.begin;
    for (const PairEntry* end = pair + size_t(group.length) * (R / 2); pair != end; pair += R / 2)
      unrolled<R / 2>([&](auto p) DP_INLINE {
        const int8x8_t two = vld1_s8(reinterpret_cast<const int8_t*>(pair[p].weights));
        const int8x16_t weights = vcombine_s8(two, two);
        const uint8_t* from = tile.source + pair[p].offset;
        unrolled<N>([&](auto n) DP_INLINE {
          const uint8x16_t x = load(from + n * kRegisterBytes);
          multiply<0>(acc[2 * p][n], x, weights);
          multiply<1>(acc[2 * p + 1][n], x, weights);
        });
      });
  } else {
    const Entry* entry = tile.packed->entries.data() + group.begin;
    for (const Entry* end = entry + size_t(group.length) * R; entry != end; entry += R)
      unrolled<R>([&](auto r) DP_INLINE {
        constexpr int lane = r % 2 ? 3 : 1, first = r - r % 2;
        const auto* from_two = reinterpret_cast<const int8_t*>(entry + first);
        int8x16_t weights;
        if constexpr (first + 1 < R) {
          weights = vld1q_s8(from_two);
        } else {
          const int8x8_t one = vld1_s8(from_two);
          weights = vcombine_s8(one, one);
        }
        const uint8_t* from = tile.source + entry[r].offset;
        unrolled<N>([&](auto n) DP_INLINE { multiply<lane>(acc[r][n], load(from + n * kRegisterBytes), weights); });
      });
  }
}

template <bool kPaired, int R, int V, bool kSwish, bool kResidual>
void sparse_block(const Tile& tile, int first) {
  constexpr int kRow = V * kRegisterBytes;
  const Packed& packed = *tile.packed;
  alignas(DP_ALIGN) uint8_t planar[(kBlockRows + 1) * kRow];
  // The rows that fill up the last group read a residual too, of any value.
  alignas(DP_ALIGN) uint8_t parted[kResidual ? (kBlockQuads + 1) * V * kVectorBytes : 1];
  const int last = std::min(tile.last, first + kBlockQuads);
  if (kResidual) part_rows<V>(tile, first, last, parted);
  const int32_t* groups = packed.block_groups.data() + first / kBlockQuads;
  const GroupedRow* rows = packed.grouped.data() + size_t(groups[0]) * R;
  for (int group = groups[0]; group < groups[1]; ++group, rows += R) {
    int32x4_t acc[R][V * kRegisters];
    accumulate<kPaired>(tile, packed.groups[size_t(group)], rows, acc);
    unrolled<R>([&](auto r) DP_INLINE {
      const unsigned row = unsigned(rows[r].row);
      const uint8_t* residual = kResidual ? parted + row / DP_QUAD * V * kVectorBytes + row % DP_QUAD * kRegisterBytes : nullptr;
      store_row<V, kSwish, kResidual>(acc[r], rows[r].scale, *tile.epilogue, residual, planar + row * kRow);
    });
  }
  interleave<V>(planar, tile, first, last);
}

} // namespace
} // namespace dp

#include "vector_tile.h"
