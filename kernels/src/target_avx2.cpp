// AVX2: eight pixels of four channels a register. VPMADDUBSW would saturate at 16 bits, so bytes are widened to words
// and multiplied in pairs, which is exact.
//
// Target 10 on x86_64: -mavx2 -mfma
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv.h"

namespace dp {
namespace {

constexpr int kWidest = 4, kHalf = kVectorBytes / 2;

inline __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

// Four int8 weights as two pairs of int16: channels 0 and 2, channels 1 and 3, to meet even and odd bytes.
struct Pairs {
  __m256i even, odd;

  explicit Pairs(uint32_t weights) {
    const __m256i bytes = _mm256_set1_epi32(int32_t(weights));
    even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    odd = _mm256_srai_epi16(bytes, 8);
  }

  __m256i operator()(__m256i x) const {
    const __m256i low = _mm256_and_si256(x, _mm256_set1_epi16(255)), high = _mm256_srli_epi16(x, 8);
    return _mm256_add_epi32(_mm256_madd_epi16(low, even), _mm256_madd_epi16(high, odd));
  }
};

// acc[r][pixel] of one vector of sixteen pixels, four output channels.
struct Block {
  __m256i acc[DP_QUAD][2];
};

void accumulate_shared(const Packed& packed, int quad, const uint8_t* source, Block& block) {
  const SharedEntry* entry = packed.shared.data() + packed.quads[quad].begin;
  for (int i = 0; i < packed.quads[quad].length; ++i, ++entry) {
    const uint8_t* from = source + entry->offset;
    const __m256i first = load(from), second = load(from + kHalf);
    for (int r = 0; r < DP_QUAD; ++r) {
      const Pairs weights(entry->weights[r]);
      block.acc[r][0] = _mm256_add_epi32(block.acc[r][0], weights(first));
      block.acc[r][1] = _mm256_add_epi32(block.acc[r][1], weights(second));
    }
  }
}

// Groups are of one row here, so that a row's entries are neighbours.
void accumulate_row(const Packed& packed, const RowGroup& group, const uint8_t* source, __m256i (&acc)[2]) {
  const Entry* entry = packed.entries.data() + group.begin;
  for (const Entry* end = entry + group.length; entry != end; ++entry) {
    const uint8_t* from = source + entry->offset;
    const Pairs weights(entry->weights);
    acc[0] = _mm256_add_epi32(acc[0], weights(load(from)));
    acc[1] = _mm256_add_epi32(acc[1], weights(load(from + kHalf)));
  }
}

// What a swish multiplies by.
__m256 swish_gate(__m256 t) {
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

__m256i requantize(__m256i acc, float scale, const Epilogue& e, bool has_residual, __m256i residual) {
  const __m256 shift = _mm256_set1_ps(e.shift);
  __m256 f = _mm256_cvtepi32_ps(acc);
  if (e.swish_rate > 0) {
    f = _mm256_mul_ps(f, _mm256_set1_ps(scale));
    f = _mm256_fmadd_ps(f, swish_gate(_mm256_mul_ps(f, _mm256_set1_ps(e.swish_rate))), shift);
  } else if (e.hard_swish_slope > 0) {
    f = _mm256_mul_ps(f, _mm256_set1_ps(scale));
    const __m256 gate = _mm256_fmadd_ps(f, _mm256_set1_ps(e.hard_swish_slope), _mm256_set1_ps(0.5f));
    f = _mm256_fmadd_ps(f, _mm256_min_ps(_mm256_max_ps(gate, _mm256_setzero_ps()), _mm256_set1_ps(1.0f)), shift);
  } else {
    f = _mm256_fmadd_ps(f, _mm256_set1_ps(scale), shift);
  }
  if (has_residual) {
    f = _mm256_min_ps(_mm256_max_ps(f, _mm256_set1_ps(e.sum_low)), _mm256_set1_ps(e.sum_high));
    f = _mm256_fmadd_ps(_mm256_cvtepi32_ps(residual), _mm256_set1_ps(e.residual_scale), f);
  }
  return _mm256_cvtps_epi32(f);
}

void store(const Block& block, const float* scale, const Epilogue& e, const uint8_t* residual, uint8_t* out) {
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int half = 0; half < 2; ++half) {
    const __m256i r = residual ? load(residual + half * kHalf) : _mm256_setzero_si256();
    __m256i row[DP_QUAD];
    for (int i = 0; i < DP_QUAD; ++i) {
      const __m256i byte = _mm256_and_si256(_mm256_srlv_epi32(r, _mm256_set1_epi32(8 * i)), _mm256_set1_epi32(255));
      row[i] = requantize(block.acc[i][half], scale[i], e, residual != nullptr, byte);
    }
    const __m256i first = _mm256_packs_epi32(row[0], row[1]), second = _mm256_packs_epi32(row[2], row[3]);
    const __m256i bytes = _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(first, second), _mm256_set1_epi8(char(e.low))),
                                          _mm256_set1_epi8(char(e.high)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + half * kHalf), _mm256_shuffle_epi8(bytes, order));
  }
}

void start(const int32_t* bias, Block& block) {
  for (int r = 0; r < DP_QUAD; ++r) block.acc[r][0] = block.acc[r][1] = _mm256_set1_epi32(bias[r]);
}

void finish(const Tile& tile, int quad, int v, const Block& block) {
  const float* scale = tile.packed->scale.data() + quad * DP_QUAD;
  const size_t plane = size_t(quad) * tile.out_plane;
  if (!tile.lanes) {
    const size_t to = plane + size_t(v) * kVectorBytes;
    return store(block, scale, *tile.epilogue, tile.residual ? tile.residual + to : nullptr, tile.out + to);
  }
  alignas(32) uint32_t bytes[DP_PIXELS], residual[DP_PIXELS] = {};
  const size_t first = plane + size_t(tile.lanes[v].first) * DP_QUAD;
  const unsigned valid = tile.lanes[v].valid;
  for (size_t i = 0, at = first; tile.residual && i < DP_PIXELS; ++i)
    if (valid >> i & 1) std::memcpy(residual + i, tile.residual + at, DP_QUAD), at += DP_QUAD;
  store(block, scale, *tile.epilogue, tile.residual ? reinterpret_cast<uint8_t*>(residual) : nullptr,
        reinterpret_cast<uint8_t*>(bytes));
  for (size_t i = 0, at = first; i < DP_PIXELS; ++i)
    if (valid >> i & 1) std::memcpy(tile.out + at, bytes + i, DP_QUAD), at += DP_QUAD;
}

void sparse_block(const Tile& tile, int first, int v) {
  const Packed& packed = *tile.packed;
  Block blocks[kBlockQuads];
  for (int quad = 0; quad < kBlockQuads; ++quad) start(packed.bias.data() + (first + quad) * DP_QUAD, blocks[quad]);
  const int32_t* groups = packed.block_groups.data() + first / kBlockQuads;
  for (int group = groups[0]; group < groups[1]; ++group) {
    const int row = packed.grouped[group].row;
    accumulate_row(packed, packed.groups[group], tile.source + v * kVectorBytes, blocks[row / DP_QUAD].acc[row % DP_QUAD]);
  }
  for (int quad = 0; quad < kBlockQuads && first + quad < tile.last; ++quad) finish(tile, first + quad, v, blocks[quad]);
}

void tile(const Tile& tile) {
  const Packed& packed = *tile.packed;
  const int step = packed.is_shared ? 1 : kBlockQuads;
  for (int quad = tile.first; quad < tile.last; quad += step)
    for (int v = 0; v < tile.vectors; ++v) {
      if (!packed.is_shared) {
        sparse_block(tile, quad, v);
        continue;
      }
      Block block;
      start(packed.bias.data() + quad * DP_QUAD, block);
      accumulate_shared(packed, quad, tile.source + v * kVectorBytes, block);
      finish(tile, quad, v, block);
    }
}

void to_c4(int pixels, int channels, const uint8_t* nhwc, uint8_t* c4) {
  const int padded = round_up(pixels, DP_PIXELS);
  for (int first = 0; first < channels; first += DP_QUAD) {
    auto* to = c4 + size_t(first / DP_QUAD) * padded * DP_QUAD;
    const int present = std::min<int>(DP_QUAD, channels - first);
    for (int pixel = 0; pixel < pixels; ++pixel, to += DP_QUAD) {
      uint32_t quad = 0;
      if (present == DP_QUAD)
        std::memcpy(&quad, nhwc + size_t(pixel) * channels + first, DP_QUAD);
      else
        std::memcpy(&quad, nhwc + size_t(pixel) * channels + first, size_t(present));
      std::memcpy(to, &quad, DP_QUAD);
    }
    std::memset(to, 0, size_t(padded - pixels) * DP_QUAD);
  }
}

void from_c4(int pixels, int channels, const uint8_t* c4, uint8_t* nhwc) {
  const int padded = round_up(pixels, DP_PIXELS);
  for (int first = 0; first < channels; first += DP_QUAD) {
    const auto* from = c4 + size_t(first / DP_QUAD) * padded * DP_QUAD;
    const size_t present = size_t(std::min<int>(DP_QUAD, channels - first));
    for (int pixel = 0; pixel < pixels; ++pixel, from += DP_QUAD)
      std::memcpy(nhwc + size_t(pixel) * channels + first, from, present);
  }
}

void copy(const Packed& packed, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to) {
  const uint8_t* around = reinterpret_cast<const uint8_t*>(&outside);
  for (int v = begin; v < end; ++v, to += kVectorBytes) {
    for (int i = 0; i < DP_PIXELS; ++i) {
      const int32_t pixel = packed.pixels.empty() ? -1 : packed.pixels[v * DP_PIXELS + i];
      std::memcpy(to + i * DP_QUAD, pixel < 0 ? around : plane + size_t(pixel) * DP_QUAD, DP_QUAD);
    }
    if (!packed.pixels.empty()) continue;
    for (int i = packed.vector_segments[v]; i < packed.vector_segments[v + 1]; ++i) {
      const Segment& segment = packed.segments[i];
      const int first = __builtin_ctz(segment.lanes), count = __builtin_popcount(segment.lanes);
      const uint8_t* from = plane + segment.from;
      if (!packed.is_halved) std::memcpy(to + first * DP_QUAD, from + first * DP_QUAD, size_t(count) * DP_QUAD);
      for (int l = first; packed.is_halved && l < first + count; ++l) std::memcpy(to + l * DP_QUAD, from + l * 2 * DP_QUAD, DP_QUAD);
    }
  }
}

void sums(int pixels, const uint8_t* quad, int32_t (&sums)[DP_QUAD]) {
  constexpr int kPixels = DP_PIXELS / 2;
  __m256i acc[DP_QUAD] = {};
  alignas(32) uint32_t lanes[kPixels] = {};
  for (int pixel = 0; pixel < pixels; pixel += kPixels) {
    const uint8_t* from = quad + size_t(pixel) * DP_QUAD;
    if (pixels - pixel < kPixels) {
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

void quantize(int pixels, int channels, const float* x, float step, float zero_point, uint8_t* quad) {
  constexpr int kPixels = DP_PIXELS / 2;
  const __m256 by = _mm256_set1_ps(step), shift = _mm256_set1_ps(zero_point), most = _mm256_set1_ps(255);
  const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (int pixel = 0; pixel < round_up(pixels, DP_PIXELS); pixel += kPixels) {
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_set1_epi32(pixels - pixel), number);
    __m256i found = _mm256_setzero_si256();
    for (int i = 0; i < channels; ++i) {
      const __m256 given = pixel < pixels ? _mm256_maskload_ps(x + size_t(i) * pixels + pixel, inside) : _mm256_setzero_ps();
      const __m256 rounded = _mm256_round_ps(_mm256_div_ps(given, by), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __m256 f = _mm256_max_ps(_mm256_min_ps(_mm256_add_ps(rounded, shift), most), _mm256_setzero_ps());
      found = _mm256_or_si256(found, _mm256_slli_epi32(_mm256_and_si256(_mm256_cvtps_epi32(f), inside), 8 * i));
    }
    _mm256_store_si256(reinterpret_cast<__m256i*>(quad + size_t(pixel) * DP_QUAD), found);
  }
}

void max_rows(int bytes, const uint8_t* x, uint8_t* y) {
  int at = 0;
  for (; at + kHalf <= bytes; at += kHalf)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + at), _mm256_max_epu8(load(x + at), load(y + at)));
  for (; at < bytes; ++at) y[at] = std::max(x[at], y[at]);
}

bool runs() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

} // namespace

Target avx2_target() { return {"avx2", runs, tile, kWidest, [](int) { return 1; }, to_c4, from_c4, copy, sums, scale, quantize, max_rows}; }

} // namespace dp
