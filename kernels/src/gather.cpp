// The copy of a padded, strided or dilated convolution's input: see Phase.
#include <algorithm>

#include "conv.h"

namespace dp {
namespace {

int divide_up(int value, int by) { return value <= 0 ? 0 : (value + by - 1) / by; }

} // namespace

Columns columns_of(const Geometry& g, const Packed& packed, const Phase& phase) {
  const dp_conv_shape& s = g.shape;
  const int shift = phase.x - s.pad_left, before = std::min(packed.pitch, divide_up(-shift, s.stride_x));
  return {shift, before, std::max(0, std::min(packed.pitch, divide_up(s.width - shift, s.stride_x)) - before)};
}

namespace {

uint32_t every_second(uint32_t lanes) {
  uint32_t spread = 0;
  for (int i = 0; i < DP_PIXELS; ++i) spread |= (lanes >> i & 1) << 2 * i;
  return spread;
}

std::vector<int32_t> pixels_of(const Geometry& g, const Packed& packed) {
  const dp_conv_shape& s = g.shape;
  std::vector<int32_t> pixels(packed.source_plane / DP_QUAD, -1);
  for (const Phase& phase : packed.phases)
    for (int row = 0; row < packed.rows; ++row)
      for (int column = 0; column < packed.pitch; ++column) {
        const int64_t y = int64_t(row) * s.stride_y + phase.y - s.pad_top;
        const int64_t x = int64_t(column) * s.stride_x + phase.x - s.pad_left;
        if (y >= 0 && y < s.height && x >= 0 && x < s.width)
          pixels[phase.offset / DP_QUAD + size_t(row * packed.pitch + column)] = int32_t(y * s.width + x);
      }
  return pixels;
}

} // namespace

void plan_copy(const Geometry& g, Packed& packed) {
  const int stride = g.shape.stride_x;
  std::vector<int32_t> pixels = pixels_of(g, packed);
  if (stride > 2) {
    packed.pixels = std::move(pixels);
    return;
  }
  packed.is_halved = stride == 2;
  for (size_t i = 0; i < pixels.size(); ++i) {
    const int lane = int(i % DP_PIXELS), from = (pixels[i] - lane * stride) * DP_QUAD;
    if (lane == 0) packed.vector_segments.push_back(int32_t(packed.segments.size()));
    if (pixels[i] < 0) continue;
    if (lane == 0 || pixels[i - 1] < 0 || packed.segments.back().from != from) packed.segments.push_back({from, 0, 0, 0});
    Segment& segment = packed.segments.back();
    segment.lanes = uint16_t(segment.lanes | 1 << lane);
    const uint32_t read = every_second(segment.lanes);
    segment.low = uint16_t(read), segment.high = uint16_t(read >> DP_PIXELS);
  }
  packed.vector_segments.push_back(int32_t(packed.segments.size()));
}

void gather(const Geometry& g, const Packed& packed, const Target& target, const Part& part, const uint8_t* x,
            uint8_t* to_plane) {
  const uint8_t* plane = x + size_t(part.quad) * g.pixels_in * DP_QUAD;
  if (g.is_direct()) {
    const size_t begin = size_t(part.begin) * kVectorBytes, end = size_t(part.end) * kVectorBytes;
    return target.lower(end - begin, plane + begin, to_plane + begin);
  }
  const uint32_t outside = uint32_t(g.shape.input_zero_point) * 0x01010101u;
  const int phases = int(packed.phases.size());
  const int vectors = phases ? int(packed.source_plane / kVectorBytes) / phases : 0; // none where all weights are zero
  for (int phase = 0; phase < phases; ++phase) {
    const int begin = phase * vectors + part.begin, end = phase * vectors + std::min(vectors, part.end + packed.reach);
    target.copy(packed, plane, outside, begin, end, to_plane + size_t(begin) * kVectorBytes);
  }
}

} // namespace dp
