// Channels of pixels to C4 and back, and the copy of a plane, for every 256-bit target.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv.h"
#include "quads.h"

namespace dp {
namespace {

// Eight pixels of four channels: what a register holds.
constexpr int kHalf = kVectorBytes / 2, kLanes = DP_PIXELS / 2;

inline __m256i load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline void store(uint8_t* to, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x); }

// Lanes whose bit is set, all ones.
[[gnu::always_inline]] inline __m256i lanes_of(unsigned bits) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), bit), bit);
}

// Pixels of those lanes; the others are zero, and their memory is not touched.
[[gnu::always_inline]] inline __m256i load_lanes(const uint8_t* from, unsigned bits) {
  return _mm256_maskload_epi32(reinterpret_cast<const int*>(from), lanes_of(bits));
}

void to_c4(int pixels, int channels, const uint8_t* nhwc, uint8_t* c4) { quads_to_c4({pixels, channels, 0, 0}, nhwc, c4); }

void from_c4(int pixels, int channels, const uint8_t* c4, uint8_t* nhwc) { quads_from_c4({pixels, channels, 0, 0}, c4, nhwc); }

// Eight lanes of a segment, from its first pixel on; `read` says what of the sixteen pixels there is needed at a stride of 2.
template <bool kHalved>
[[gnu::always_inline]] inline __m256i segment_lanes(const uint8_t* from, unsigned lanes, unsigned read) {
  if (!kHalved) return load_lanes(from, lanes);
  const __m256 low = _mm256_castsi256_ps(load_lanes(from, read & 255));
  const __m256 high = _mm256_castsi256_ps(load_lanes(from + kHalf, read >> kLanes));
  return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)), 0xd8); // the even ones
}

template <bool kHalved>
void copy_segments(const Packed& packed, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to) {
  const __m256i around = _mm256_set1_epi32(int32_t(outside));
  const int32_t* starts = packed.vector_segments.data();
  const Segment* segment = packed.segments.data() + starts[begin];
  for (int v = begin; v < end; ++v, to += kVectorBytes) {
    __m256i first = around, second = around;
    for (const Segment* last = packed.segments.data() + starts[v + 1]; segment != last; ++segment) {
      const uint8_t* from = plane + segment->from;
      const unsigned low = segment->lanes & 255u, high = unsigned(segment->lanes) >> kLanes;
      if (low) first = _mm256_blendv_epi8(first, segment_lanes<kHalved>(from, low, segment->low), lanes_of(low));
      from += kHalved ? kVectorBytes : kHalf;
      if (high) second = _mm256_blendv_epi8(second, segment_lanes<kHalved>(from, high, segment->high), lanes_of(high));
    }
    store(to, first);
    store(to + kHalf, second);
  }
}

} // namespace
} // namespace dp

#include "vector_copy.h"
