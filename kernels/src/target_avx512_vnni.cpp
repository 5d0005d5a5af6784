// AVX-512 VNNI: sixteen pixels of four channels a register; a step multiplies them by four weights.
#include <immintrin.h>

#include <cstring>
#include <utility>

#include "targets.h"

namespace dp {
namespace {

constexpr int kWidest = 7; // four channels x 7 vectors = 28 accumulators, one register of weights, three to spare

inline __m512i load(const uint8_t* from) { return _mm512_loadu_si512(from); }

// acc += x * weights. As assembly, because the compiler keeps copies of the accumulators around its own intrinsic.
[[gnu::always_inline]] inline void multiply(__m512i& acc, __m512i x, __m512i weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(weights));
}

// The same, the weights broadcast from memory by the instruction itself: with 28 accumulators there is no
// register to hold four of them, and the compiler, told by intrinsics, would load them into some and spill.
[[gnu::always_inline]] inline void multiply(__m512i& acc, __m512i x, const uint32_t& weights) {
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(x), "m"(weights));
}

// Accumulators of four output channels.
template <int V>
struct Block {
  __m512i acc[DP_QUAD][V];

  template <int R>
  [[gnu::always_inline]] inline void own(const Entry* entry, int count, const uint8_t* source) {
    for (const Entry* end = entry + count; entry != end; ++entry) {
      const __m512i weights = _mm512_set1_epi32(int32_t(entry->weights));
      const uint8_t* from = source + entry->offset;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v)
        multiply(acc[R][v], load(from + v * kVectorBytes), weights);
    }
  }

  [[gnu::always_inline]] inline void shared(const SharedEntry* entry, int count, const uint8_t* source) {
    for (const SharedEntry* end = entry + count; entry != end; ++entry) {
      const uint8_t* from = source + entry->offset;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const __m512i x = load(from + v * kVectorBytes);
#pragma GCC unroll 4
        for (int r = 0; r < DP_QUAD; ++r) multiply(acc[r][v], x, entry->weights[r]);
      }
    }
  }
};

// What a row's float goes through before it is rounded.
template <bool kSwish, bool kResidual>
[[gnu::always_inline]] inline __m512i requantize(__m512i acc, __m512 scale, const Epilogue& e, __m512i residual) {
  __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale);
  if (kSwish) {
    const __m512 gate = _mm512_fmadd_ps(f, _mm512_set1_ps(e.hard_swish_slope), _mm512_set1_ps(0.5f));
    f = _mm512_mul_ps(f, _mm512_min_ps(_mm512_max_ps(gate, _mm512_setzero_ps()), _mm512_set1_ps(1.0f)));
  }
  if (kResidual) {
    const __m512i centred = _mm512_sub_epi32(residual, _mm512_set1_epi32(e.residual_zero_point));
    f = _mm512_fmadd_ps(_mm512_cvtepi32_ps(centred), _mm512_set1_ps(e.residual_scale), f);
  }
  return _mm512_cvtps_epi32(f);
}

// 4 x 4 bytes of a lane, channel by channel, to pixel by pixel.
inline __m512i transpose_lanes(__m512i bytes) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
}

template <int V, bool kSwish, bool kResidual>
[[gnu::always_inline]] inline void store(const Block<V>& block, const Tile& tile, int quad) {
  const Epilogue& e = *tile.epilogue;
  const __m512i zero_point = _mm512_set1_epi16(short(e.output_zero_point));
  const __m512i low = _mm512_set1_epi8(char(e.low)), high = _mm512_set1_epi8(char(e.high)), byte = _mm512_set1_epi32(255);
  const float* scale = tile.packed->scale.data() + quad * DP_QUAD;
  uint8_t* out = tile.out + size_t(quad) * tile.out_plane;
  const uint8_t* residual = kResidual ? tile.residual + size_t(quad) * tile.out_plane : nullptr;
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    const __m512i r = kResidual ? load(residual + v * kVectorBytes) : _mm512_setzero_si512();
    __m512i row[DP_QUAD];
    row[0] = requantize<kSwish, kResidual>(block.acc[0][v], _mm512_set1_ps(scale[0]), e, _mm512_and_si512(r, byte));
    row[1] = requantize<kSwish, kResidual>(block.acc[1][v], _mm512_set1_ps(scale[1]), e,
                                           _mm512_and_si512(_mm512_srli_epi32(r, 8), byte));
    row[2] = requantize<kSwish, kResidual>(block.acc[2][v], _mm512_set1_ps(scale[2]), e,
                                           _mm512_and_si512(_mm512_srli_epi32(r, 16), byte));
    row[3] = requantize<kSwish, kResidual>(block.acc[3][v], _mm512_set1_ps(scale[3]), e, _mm512_srli_epi32(r, 24));
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(row[0], row[1]), zero_point);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(row[2], row[3]), zero_point);
    const __m512i bytes = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(first, second), low), high);
    _mm512_store_si512(out + v * kVectorBytes, transpose_lanes(bytes));
  }
}

template <int V>
void run(const Tile& tile) {
  const Packed& packed = *tile.packed;
  for (int quad = tile.first; quad < tile.last; ++quad) {
    const QuadRows& rows = packed.quads[quad];
    const int32_t* bias = packed.bias.data() + quad * DP_QUAD;
    Block<V> block;
#pragma GCC unroll 4
    for (int r = 0; r < DP_QUAD; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) block.acc[r][v] = _mm512_set1_epi32(bias[r]);
    if (rows.is_shared) {
      block.shared(packed.shared.data() + rows.begin, rows.count[0], tile.source);
    } else {
      const Entry* entry = packed.entries.data() + rows.begin;
      block.template own<0>(entry, rows.count[0], tile.source);
      block.template own<1>(entry += rows.count[0], rows.count[1], tile.source);
      block.template own<2>(entry += rows.count[1], rows.count[2], tile.source);
      block.template own<3>(entry += rows.count[2], rows.count[3], tile.source);
    }
    const bool swish = tile.epilogue->hard_swish_slope > 0;
    if (tile.residual)
      swish ? store<V, true, true>(block, tile, quad) : store<V, false, true>(block, tile, quad);
    else
      swish ? store<V, true, false>(block, tile, quad) : store<V, false, false>(block, tile, quad);
  }
}

template <int... V>
void run_of(const Tile& tile, std::integer_sequence<int, V...>) {
  static constexpr void (*table[])(const Tile&) = {run<V + 1>...};
  table[tile.vectors - 1](tile);
}

void tile(const Tile& tile) { run_of(tile, std::make_integer_sequence<int, kWidest>()); }

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

void every(int count, int stride, const uint32_t* from, uint32_t* to) {
  int i = 0;
  if (stride == 1) {
    for (; i + 16 <= count; i += 16) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
    const __mmask16 rest = __mmask16((1u << (count - i)) - 1);
    _mm512_mask_storeu_epi32(to + i, rest, _mm512_maskz_loadu_epi32(rest, from + i));
    return;
  }
  if (stride == 2) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    for (; i + 17 <= count; i += 16) // one more than sixteen, so that the 32nd quad read is there
      _mm512_storeu_si512(to + i, _mm512_permutex2var_epi32(_mm512_loadu_si512(from + 2 * i), even,
                                                            _mm512_loadu_si512(from + 2 * i + 16)));
  }
  for (; i < count; ++i) to[i] = from[i * stride];
}

bool runs() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

} // namespace

Target avx512_vnni_target() { return {"avx512_vnni", runs, tile, kWidest, to_c4, from_c4, every}; }

} // namespace dp
