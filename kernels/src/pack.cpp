// From mask and values to what a tile reads.
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <stdexcept>

#include "conv.h"

namespace dp {
namespace {

// A shared step multiplies one loaded vector four times; own entries load a vector for each multiplication. Measured
// on Cascade Lake, a multiplication with its own load costs this much more than one without.
constexpr double kOwnLoad = 1.6;

int64_t popcount(const uint8_t* bytes, size_t count) {
  int64_t bits = 0;
  for (size_t i = 0; i < count; ++i) bits += __builtin_popcount(bytes[i]);
  return bits;
}

void check_range(const dp_conv_shape& s, const dp_conv_weights& weights, int row, int64_t magnitude) {
  const double accumulated = 255.0 * double(magnitude) + std::abs(double(weights.bias[row]));
  const float scale = weights.scale[row];
  if (!std::isfinite(scale)) throw std::runtime_error("scale of output channel " + std::to_string(row) + " is not finite");
  const double residual = s.has_residual ? 255.0 * std::abs(s.residual_scale) : 0.0;
  if (accumulated >= 2147483647.0 || accumulated * std::abs(scale) + residual >= 2147483000.0)
    throw std::runtime_error("output channel " + std::to_string(row) + " can leave 32 bits");
}

struct Source { // where taps are read from
  const Geometry& geometry;
  const Packed& packed;

  int32_t offset(const Nonzero& weight) const {
    const size_t plane = size_t(weight.channel / DP_QUAD) * packed.source_plane;
    if (geometry.is_direct()) return int32_t(plane);
    const dp_conv_shape& s = geometry.shape;
    const int y = weight.ky * s.dilation_y;
    for (const Gathered& image : packed.gathered)
      if (image.phase_y == y % s.stride_y && image.kx == weight.kx)
        return int32_t(plane + image.offset + size_t(y / s.stride_y) * geometry.width_out * DP_QUAD);
    throw std::logic_error("a tap without a gathered image");
  }
};

using Quads = std::map<int32_t, uint32_t>; // offset -> four weights

Quads quads_of(const std::vector<Nonzero>& row, const Source& source) {
  Quads quads;
  for (const Nonzero& weight : row)
    quads[source.offset(weight)] |= uint32_t(uint8_t(int8_t(weight.value))) << (8 * (weight.channel % DP_QUAD));
  return quads;
}

void lay_out_source(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, Packed& packed) {
  if (g.is_direct()) {
    packed.source_plane = size_t(g.pixels_in) * DP_QUAD;
    return;
  }
  std::map<std::pair<int, int>, int> lowest; // (phase, kx) -> rows beyond the output's that its taps reach
  for (const auto& row : rows)
    for (const Nonzero& weight : row) {
      const int y = weight.ky * g.shape.dilation_y;
      int& reach = lowest[{y % g.shape.stride_y, weight.kx}];
      reach = std::max(reach, y / g.shape.stride_y);
    }
  size_t offset = 0;
  for (const auto& [key, reach] : lowest) {
    packed.gathered.push_back({key.first, key.second, g.height_out + reach, offset});
    // A last vector may begin at any pixel of the last row, so one more vector is there to be read.
    offset += size_t(round_up((g.height_out + reach) * g.width_out, DP_PIXELS) + DP_PIXELS) * DP_QUAD;
  }
  packed.source_plane = offset;
}

} // namespace

std::vector<std::vector<Nonzero>> read_weights(const Geometry& g, const dp_conv_weights& weights) {
  const dp_conv_shape& s = g.shape;
  const int taps = s.kernel_y * s.kernel_x, columns = g.pixels_in_group() * taps;
  const size_t bits = size_t(s.channels_out) * columns;
  if (weights.mask_bytes != (bits + 7) / 8)
    throw std::runtime_error("the mask has " + std::to_string(weights.mask_bytes) + " bytes where " + std::to_string(bits) +
                             " weights need " + std::to_string((bits + 7) / 8));
  const int64_t set = popcount(weights.mask, weights.mask_bytes);
  if (bits % 8 && weights.mask[bits / 8] >> (bits % 8)) throw std::runtime_error("the mask has bits beyond the last weight");
  if (size_t(set) != weights.values_count)
    throw std::runtime_error("the mask names " + std::to_string(set) + " weights and there are " +
                             std::to_string(weights.values_count) + " values");
  std::vector<std::vector<Nonzero>> rows(s.channels_out);
  const int8_t* value = weights.values;
  size_t bit = 0;
  for (int row = 0; row < s.channels_out; ++row) {
    const int first = row / (s.channels_out / s.groups) * g.pixels_in_group();
    int64_t magnitude = 0;
    for (int column = 0; column < columns; ++column, ++bit) {
      if (!(weights.mask[bit / 8] >> (bit % 8) & 1)) continue;
      const int tap = column % taps;
      rows[row].push_back({first + column / taps, tap / s.kernel_x, tap % s.kernel_x, *value});
      magnitude += std::abs(int(*value++));
    }
    check_range(s, weights, row, magnitude);
  }
  return rows;
}

Packed pack(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, const dp_conv_weights& weights) {
  Packed packed;
  packed.scale.assign(size_t(g.quads_out) * DP_QUAD, 0.0f);
  packed.bias.assign(size_t(g.quads_out) * DP_QUAD, 0);
  std::copy_n(weights.scale, rows.size(), packed.scale.begin());
  std::copy_n(weights.bias, rows.size(), packed.bias.begin());
  lay_out_source(g, rows, packed);
  const Source source{g, packed};
  for (int quad = 0; quad < g.quads_out; ++quad) {
    Quads of[DP_QUAD];
    std::map<int32_t, std::array<uint32_t, DP_QUAD>> together;
    size_t own = 0;
    for (int r = 0; r < DP_QUAD && quad * DP_QUAD + r < int(rows.size()); ++r) {
      of[r] = quads_of(rows[quad * DP_QUAD + r], source);
      own += of[r].size();
      for (const auto& [offset, four] : of[r]) together[offset][r] = four;
    }
    QuadRows described{};
    described.is_shared = double(together.size() * DP_QUAD) <= kOwnLoad * double(own);
    if (described.is_shared) {
      described.begin = int32_t(packed.shared.size());
      described.count[0] = int32_t(together.size());
      for (const auto& [offset, four] : together)
        packed.shared.push_back({offset, {four[0], four[1], four[2], four[3]}});
      packed.steps += int64_t(together.size()) * DP_QUAD;
    } else {
      described.begin = int32_t(packed.entries.size());
      for (int r = 0; r < DP_QUAD; ++r) {
        described.count[r] = int32_t(of[r].size());
        for (const auto& [offset, four] : of[r]) packed.entries.push_back({offset, four});
      }
      packed.steps += int64_t(own);
    }
    packed.quads.push_back(described);
  }
  return packed;
}

} // namespace dp
