// Windows: sixteen output channels times up to four weights each out of 64 input channels, chosen by VPERMB.
#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "conv.h"

namespace dp {
namespace {

// Lines that stay in the first-level cache while all output channels read them; vectors of two passes over 24 pixels.
constexpr int kTileBytes = 24 * 1024, kMostVectors = 3;

using Rows = std::array<std::vector<Placed>, kWindowRows>;

void append_steps(const Rows& rows, int32_t line, Packed& packed) {
  size_t longest = 0;
  for (const auto& row : rows) longest = std::max(longest, row.size());
  for (size_t begin = 0; begin < longest; begin += DP_QUAD) {
    WindowStep step{};
    for (size_t row = 0; row < rows.size(); ++row)
      for (size_t i = begin; i < std::min(begin + DP_QUAD, rows[row].size()); ++i) {
        step.index[row * DP_QUAD + i - begin] = rows[row][i].index;
        step.weights[row * DP_QUAD + i - begin] = rows[row][i].weight;
      }
    packed.windows.push_back(step);
    packed.window_lines.push_back(line);
  }
}

} // namespace

int window_vectors(const Geometry& g, const Packed& packed) {
  const int all = packed.all_vectors, beyond = (packed.rows - g.height_out) * packed.pitch / DP_PIXELS;
  const int fitting = kTileBytes / (g.windows_in() * kWindow * DP_PIXELS) - beyond;
  return evenly(all, std::min(kMostVectors, std::max(1, fitting)));
}

void pack_windows(const std::vector<std::vector<Placed>>& rows, Packed& packed) {
  packed.is_windows = true;
  for (size_t first = 0; first < rows.size(); first += kWindowRows) {
    packed.block_windows.push_back(int32_t(packed.windows.size()));
    std::map<int32_t, Rows> lines;
    for (size_t row = 0; row < kWindowRows; ++row)
      for (const Placed& placed : rows[first + row]) lines[placed.line][row].push_back(placed);
    for (const auto& [line, of_rows] : lines) append_steps(of_rows, line, packed);
  }
  packed.block_windows.push_back(int32_t(packed.windows.size()));
  packed.steps = int64_t(packed.windows.size()) * DP_PIXELS;
}

// Requantizing and storing take as many vectors as with quads, so only what differs is counted.
double windows_cost(const Geometry& g, const Packed& packed, const Target& target, size_t steps) {
  if (!target.weighs) return 0;
  const double lines = double(packed.source_plane / DP_QUAD) * g.windows_in();
  return double(steps) * round_up(g.height_out * packed.pitch, DP_QUAD) * target.step_cost +
         lines * target.line_cost;
}

void gather_lines(const Geometry& g, const Packed& packed, const Target& target, int window, int first, int last,
                  const uint8_t* x, uint8_t* scratch, int place) {
  const dp_conv_shape& s = g.shape;
  const size_t plane = size_t(g.pixels_in) * DP_QUAD;
  const int quad = window * kLinesPerQuad, quads = std::min(g.quads_in - quad, kLinesPerQuad);
  const uint8_t* from = x + size_t(quad) * plane;
  uint8_t* to_plane = scratch + size_t(window) * packed.source_plane * kLinesPerQuad;
  if (g.is_direct()) {
    return target.lines((last - first) * DP_PIXELS, 1, quads, plane, from + size_t(first) * kVectorBytes,
                        to_plane + size_t(place) * kVectorBytes * kLinesPerQuad);
  }
  for (size_t i = 0; i < packed.phases.size(); ++i) {
    const Phase& phase = packed.phases[i];
    const uint8_t* const end = to_plane + packed.source_plane / packed.phases.size() * (i + 1) * kLinesPerQuad;
    const auto [shift, before, inside] = columns_of(g, packed, phase);
    uint8_t* to = to_plane + (phase.offset + size_t(first) * packed.pitch * DP_QUAD) * kLinesPerQuad;
    for (int row = first; row < last; ++row, to += size_t(packed.pitch) * kWindow) {
      const int y = row * s.stride_y + phase.y - s.pad_top;
      const int count = y < 0 || y >= s.height ? 0 : inside, beside = count ? before : packed.pitch;
      std::memset(to, s.input_zero_point, size_t(beside) * kWindow);
      if (!count) continue;
      target.lines(count, s.stride_x, quads, plane,
                   from + (size_t(y) * s.width + size_t(before * s.stride_x + shift)) * DP_QUAD, to + size_t(beside) * kWindow);
      std::memset(to + size_t(before + inside) * kWindow, s.input_zero_point,
                  size_t(packed.pitch - before - inside) * kWindow);
    }
    if (last == packed.rows) std::memset(to, s.input_zero_point, size_t(end - to));
  }
}

} // namespace dp
