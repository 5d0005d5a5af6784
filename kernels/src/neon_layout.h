// Channels of pixels to C4 and back, and the copies that convolutions read, for every NEON target: four pixels of four channels a
// register. Before it includes this a target defines kFlip: 0x80 where it multiplies signed bytes, so that copies hold x - 128, else 0.
// Hence the unnamed namespace.
#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <cstring>

#include "conv.h"
#include "quads.h"

namespace dp {
namespace {

// Bytes and pixels of a register, and registers of a vector.
constexpr int kRegisterBytes = 16, kLanes = 4, kRegisters = kVectorBytes / kRegisterBytes;

inline uint8x16_t load(const uint8_t* from) { return vld1q_u8(from); }

// Pixel `lane` of `stride` times as many, into that lane.
template <int lane, int stride>
[[gnu::always_inline]] inline uint32x4_t with_pixel(uint32x4_t x, const uint8_t* from) {
  uint32_t pixel;
  std::memcpy(&pixel, from + lane * stride * DP_QUAD, sizeof pixel);
  return vsetq_lane_u32(pixel, x, lane);
}

// Pixels of those lanes put into x; the memory of the others is not touched.
template <int stride>
[[gnu::always_inline]] inline uint32x4_t with_lanes(uint32x4_t x, const uint8_t* from, unsigned lanes) {
  if (lanes & 1) x = with_pixel<0, stride>(x, from);
  if (lanes & 2) x = with_pixel<1, stride>(x, from);
  if (lanes & 4) x = with_pixel<2, stride>(x, from);
  if (lanes & 8) x = with_pixel<3, stride>(x, from);
  return x;
}

// Four pixels, or the even ones of seven.
template <int stride>
[[gnu::always_inline]] inline uint32x4_t four_pixels(const uint8_t* from) {
  const uint32x4_t first = vreinterpretq_u32_u8(load(from));
  if (stride == 1) return first;
  const uint32x4_t last = vreinterpretq_u32_u8(load(from + 3 * DP_QUAD)); // the eighth may be beyond the image
  return vcombine_u32(vget_low_u32(vuzp1q_u32(first, first)), vget_low_u32(vuzp2q_u32(last, last)));
}

template <bool kHalved>
void copy_segments(const Packed& packed, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to) {
  constexpr int stride = kHalved ? 2 : 1;
  const uint8x16_t flip = vdupq_n_u8(kFlip);
  const int32_t* starts = packed.vector_segments.data();
  const Segment* segment = packed.segments.data() + starts[begin];
  for (int v = begin; v < end; ++v) {
    uint32x4_t x[kRegisters];
    for (uint32x4_t& part : x) part = vdupq_n_u32(outside);
    for (const Segment* last = packed.segments.data() + starts[v + 1]; segment != last; ++segment)
      for (int i = 0; i < kRegisters; ++i) {
        const unsigned lanes = segment->lanes >> (i * kLanes) & 15u;
        const uint8_t* from = plane + segment->from + i * stride * kRegisterBytes;
        x[i] = lanes == 15 ? four_pixels<stride>(from) : with_lanes<stride>(x[i], from, lanes);
      }
    for (int i = 0; i < kRegisters; ++i, to += kRegisterBytes) vst1q_u8(to, veorq_u8(vreinterpretq_u8_u32(x[i]), flip));
  }
}

// y = x - 128, of whole vectors.
void lower(size_t bytes, const uint8_t* x, uint8_t* y) {
  const uint8x16_t flip = vdupq_n_u8(0x80);
  for (size_t at = 0; at < bytes; at += kRegisterBytes) vst1q_u8(y + at, veorq_u8(load(x + at), flip));
}

// Four registers of four pixels each, transposed: what was a pixel's quads becomes a quad's pixels.
inline void transpose_quads(uint32x4_t (&x)[kLanes]) {
  const uint32x4_t a = vtrn1q_u32(x[0], x[1]), b = vtrn2q_u32(x[0], x[1]), c = vtrn1q_u32(x[2], x[3]), d = vtrn2q_u32(x[2], x[3]);
  x[0] = vcombine_u32(vget_low_u32(a), vget_low_u32(c));
  x[1] = vcombine_u32(vget_low_u32(b), vget_low_u32(d));
  x[2] = vcombine_u32(vget_high_u32(a), vget_high_u32(c));
  x[3] = vcombine_u32(vget_high_u32(b), vget_high_u32(d));
}

// Sixteen channels of four pixels at a time; the rest quad by quad.
void to_c4(int pixels, int channels, const uint8_t* nhwc, uint8_t* c4) {
  const size_t plane = size_t(round_up(pixels, DP_PIXELS)) * DP_QUAD;
  const int whole_pixels = pixels / kLanes * kLanes, whole_channels = channels / kRegisterBytes * kRegisterBytes;
  for (int pixel = 0; pixel < whole_pixels; pixel += kLanes)
    for (int channel = 0; channel < whole_channels; channel += kRegisterBytes) {
      uint32x4_t x[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = vreinterpretq_u32_u8(load(nhwc + size_t(pixel + i) * channels + channel));
      transpose_quads(x);
      for (int i = 0; i < kLanes; ++i)
        vst1q_u8(c4 + size_t(channel / DP_QUAD + i) * plane + size_t(pixel) * DP_QUAD, vreinterpretq_u8_u32(x[i]));
    }
  quads_to_c4({pixels, channels, whole_pixels, 0}, nhwc, c4);
  quads_to_c4({pixels, channels, 0, whole_channels}, nhwc, c4);
}

void from_c4(int pixels, int channels, const uint8_t* c4, uint8_t* nhwc) {
  const size_t plane = size_t(round_up(pixels, DP_PIXELS)) * DP_QUAD;
  const int whole_pixels = pixels / kLanes * kLanes, whole_channels = channels / kRegisterBytes * kRegisterBytes;
  for (int pixel = 0; pixel < whole_pixels; pixel += kLanes)
    for (int channel = 0; channel < whole_channels; channel += kRegisterBytes) {
      uint32x4_t x[kLanes];
      for (int i = 0; i < kLanes; ++i)
        x[i] = vreinterpretq_u32_u8(load(c4 + size_t(channel / DP_QUAD + i) * plane + size_t(pixel) * DP_QUAD));
      transpose_quads(x);
      for (int i = 0; i < kLanes; ++i) vst1q_u8(nhwc + size_t(pixel + i) * channels + channel, vreinterpretq_u8_u32(x[i]));
    }
  quads_from_c4({pixels, channels, whole_pixels, 0}, c4, nhwc);
  quads_from_c4({pixels, channels, 0, whole_channels}, c4, nhwc);
}

} // namespace
} // namespace dp

#include "vector_copy.h"

namespace dp {
namespace {

// The same with what vector_copy.h copies pixel by pixel.
void copy_flipped(const Packed& packed, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to) {
  copy(packed, plane, outside, begin, end, to);
  if (kFlip && !packed.pixels.empty() && begin < end) lower(size_t(end - begin) * kVectorBytes, to, to);
}

} // namespace
} // namespace dp
