// Pixels in the order in which the taps of a strided, dilated or padded convolution read them.
#include <algorithm>
#include <cstring>

#include "conv.h"

namespace dp {

void gather(const Geometry& g, const Packed& packed, const Target& target, int quad, const uint8_t* x, uint8_t* scratch) {
  const dp_conv_shape& s = g.shape;
  const auto* plane = reinterpret_cast<const uint32_t*>(x) + size_t(quad) * g.pixels_in;
  uint8_t* to_plane = scratch + size_t(quad) * packed.source_plane;
  const uint32_t outside = uint32_t(s.input_zero_point) * 0x01010101u;
  for (const Gathered& image : packed.gathered) {
    auto* to = reinterpret_cast<uint32_t*>(to_plane + image.offset);
    const int shift = image.kx * s.dilation_x - s.pad_left; // input column of output column 0
    const int first = std::min(g.width_out, shift < 0 ? (-shift + s.stride_x - 1) / s.stride_x : 0);
    const int end = std::max(first, std::min(g.width_out, shift < s.width ? (s.width - 1 - shift) / s.stride_x + 1 : 0));
    for (int row = 0; row < image.rows; ++row, to += g.width_out) {
      const int y = row * s.stride_y + image.phase_y - s.pad_top;
      if (y < 0 || y >= s.height) {
        std::fill_n(to, g.width_out, outside);
        continue;
      }
      std::fill_n(to, first, outside);
      target.every(end - first, s.stride_x, plane + size_t(y) * s.width + first * s.stride_x + shift, to + first);
      std::fill_n(to + end, g.width_out - end, outside);
    }
    // The lanes of a last, partial vector are thrown away, yet they are read.
    std::memset(to, 0, to_plane + (&image == &packed.gathered.back() ? packed.source_plane : (&image)[1].offset) -
                           reinterpret_cast<uint8_t*>(to));
  }
}

} // namespace dp
