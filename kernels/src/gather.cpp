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

void gather(const Geometry& g, const Packed& packed, const Target& target, int quad, const uint8_t* x, uint8_t* to_plane) {
  if (packed.phases.empty()) return; // all weights are zero
  const dp_conv_shape& s = g.shape;
  const auto* plane = reinterpret_cast<const uint32_t*>(x) + size_t(quad) * g.pixels_in;
  const size_t pixels = packed.source_plane / packed.phases.size() / DP_QUAD;
  const uint32_t outside = uint32_t(s.input_zero_point) * 0x01010101u;
  for (const Phase& phase : packed.phases) {
    auto* to = reinterpret_cast<uint32_t*>(to_plane + phase.offset);
    const uint32_t* const end = to + pixels;
    const auto [shift, before, inside] = columns_of(g, packed, phase);
    for (int row = 0; row < packed.rows; ++row, to += packed.pitch) {
      const int y = row * s.stride_y + phase.y - s.pad_top;
      if (y < 0 || y >= s.height) {
        std::fill_n(to, packed.pitch, outside);
        continue;
      }
      std::fill_n(to, before, outside);
      target.every(inside, s.stride_x, plane + size_t(y) * s.width + before * s.stride_x + shift, to + before);
      std::fill_n(to + before + inside, packed.pitch - before - inside, outside);
    }
    std::fill_n(to, end - to, outside);
  }
}

} // namespace dp
