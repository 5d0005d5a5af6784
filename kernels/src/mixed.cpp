// Mixed quads: an image of up to three channels leaves a byte of each quad empty, so that a stem multiplies by zeros. Here a
// quad holds any four of the values that a row of the kernel reads, whatever tap and channel they are of.
#include <algorithm>
#include <cstring>

#include "conv.h"

namespace dp {
namespace {

// Bytes that a permutation picks from, and what one costs beside the multiplications: two loads, a permutation, its share of
// a store.
constexpr int kPicked = 2 * kVectorBytes;
constexpr double kPartCost = 3;

struct Place {
  int quad, byte;
};

// Rows of the kernel are cut into whole quads; what is left over of each is put together behind them.
Place place_of(const dp_conv_shape& s, int ky, int kx, int channel) {
  const int values = s.kernel_x * s.channels_in, whole = values / DP_QUAD, over = values % DP_QUAD;
  const int at = kx * s.channels_in + channel;
  if (at < whole * DP_QUAD) return {ky * whole + at / DP_QUAD, at % DP_QUAD};
  const int left = ky * over + at - whole * DP_QUAD;
  return {s.kernel_y * whole + left / DP_QUAD, left % DP_QUAD};
}

// False where some quad's values lie too far apart for one permutation.
bool plan_parts(const dp_conv_shape& s, Packed& packed) {
  const int quads = (s.kernel_y * (s.kernel_x * s.channels_in / DP_QUAD)) +
                    (s.kernel_y * (s.kernel_x * s.channels_in % DP_QUAD) + DP_QUAD - 1) / DP_QUAD;
  std::vector<std::vector<MixedPart>> parts(static_cast<size_t>(quads));
  for (int ky = 0; ky < s.kernel_y; ++ky)
    for (int kx = 0; kx < s.kernel_x; ++kx)
      for (int channel = 0; channel < s.channels_in; ++channel) {
        const Place place = place_of(s, ky, kx, channel);
        auto& of_quad = parts[size_t(place.quad)];
        if (of_quad.empty() || of_quad.back().ky != ky) of_quad.push_back({{}, 0, 0, ky, kx});
        MixedPart& part = of_quad.back();
        part.from = (part.ky * s.dilation_y * packed.padded_pitch + part.kx * s.dilation_x) * DP_QUAD;
        for (int pixel = 0; pixel < DP_PIXELS; ++pixel) {
          // A stride may be any number where it is never taken.
          const int64_t index = (int64_t(pixel) * s.stride_x + (kx - part.kx) * s.dilation_x) * DP_QUAD + channel;
          if (index >= kPicked) return false;
          part.index[pixel * DP_QUAD + place.byte] = uint8_t(index);
          part.bytes |= 1ull << (pixel * DP_QUAD + place.byte);
        }
      }
  for (const auto& of_quad : parts) {
    packed.quad_parts.push_back(int32_t(packed.parts.size()));
    packed.parts.insert(packed.parts.end(), of_quad.begin(), of_quad.end());
  }
  packed.quad_parts.push_back(int32_t(packed.parts.size()));
  return true;
}

} // namespace

bool lay_out_mixed(const Geometry& g, const Target& target, Packed& packed) {
  const dp_conv_shape& s = g.shape;
  if (!target.mix || g.is_direct() || s.groups > 1 || s.channels_in >= DP_QUAD) return false;
  packed.is_mixed = true;
  packed.pitch = round_up(g.width_out, DP_PIXELS);
  packed.rows = g.height_out;
  packed.all_vectors = g.height_out * packed.pitch / DP_PIXELS;
  packed.phases.clear();
  packed.reach = 0;
  const int64_t read = int64_t(packed.pitch - DP_PIXELS) * s.stride_x + (s.kernel_x - 1) * s.dilation_x + kPicked / DP_QUAD;
  packed.padded_pitch = int(std::max<int64_t>(read, s.width + s.pad_left));
  packed.padded_rows = (g.height_out - 1) * s.stride_y + (s.kernel_y - 1) * s.dilation_y + 1;
  if (int64_t(packed.padded_pitch) * packed.padded_rows > (1 << 28)) return false; // offsets are 32 bits
  return plan_parts(s, packed);
}

int32_t mixed_offset(const Geometry& g, const Packed& packed, const Nonzero& weight) {
  return place_of(g.shape, weight.ky, weight.kx, weight.channel).quad * packed.vectors * kVectorBytes;
}

int mixed_byte(const Geometry& g, const Nonzero& weight) { return place_of(g.shape, weight.ky, weight.kx, weight.channel).byte; }

double mixed_cost(const Packed& packed) {
  return (double(packed.steps) + kPartCost * double(packed.parts.size())) * packed.all_vectors;
}

size_t padded_bytes(const Packed& packed) {
  return size_t(round_up(packed.padded_pitch * packed.padded_rows * DP_QUAD, DP_ALIGN));
}

size_t mixed_bytes(const Packed& packed) {
  return padded_bytes(packed) + (packed.quad_parts.size() - 1) * size_t(packed.vectors) * kVectorBytes;
}

void pad_rows(const Geometry& g, const Packed& packed, int first, int last, const uint8_t* x, uint8_t* padded) {
  const dp_conv_shape& s = g.shape;
  const size_t bytes = size_t(packed.padded_pitch) * DP_QUAD, before = size_t(s.pad_left) * DP_QUAD;
  const size_t inside = std::min(size_t(s.width) * DP_QUAD, bytes - before);
  for (int row = first; row < last; ++row) {
    uint8_t* to = padded + size_t(row) * bytes;
    const int y = row - s.pad_top;
    const bool there = y >= 0 && y < s.height;
    std::memset(to, s.input_zero_point, there ? before : bytes);
    if (!there) continue;
    std::memcpy(to + before, x + size_t(y) * s.width * DP_QUAD, inside);
    std::memset(to + before + inside, s.input_zero_point, bytes - before - inside);
  }
}

void mix_tile(const Geometry& g, const Packed& packed, const Target& target, int begin, int end, const uint8_t* padded, uint8_t* to) {
  const dp_conv_shape& s = g.shape;
  const int across = packed.pitch / DP_PIXELS;
  for (int v = begin; v < end; ++v, to += kVectorBytes) {
    const size_t pixel = size_t(v / across) * s.stride_y * packed.padded_pitch + size_t(v % across) * DP_PIXELS * s.stride_x;
    target.mix(packed, padded + pixel * DP_QUAD, to, size_t(packed.vectors) * kVectorBytes);
  }
}

} // namespace dp
