// From mask and values to what a tile reads.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>

#include "conv.h"

namespace dp {
namespace {

// A shared step multiplies one loaded vector four times; a sparse row loads a vector for each multiplication. Measured
// on Cascade Lake, that costs this much more.
constexpr double kOwnLoad = 1.2;

// Pixels whose activations stay in the first-level cache while all output channels read them.
constexpr int kTileBytes = 24 * 1024, kNarrowest = 4;

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
    if (packed.is_mixed) return mixed_offset(geometry, packed, weight);
    const size_t plane = packed.is_planewise ? 0 : size_t(weight.channel / DP_QUAD);
    return int32_t(plane * packed.source_plane + tap(weight));
  }

  int byte(const Nonzero& weight) const { return packed.is_mixed ? mixed_byte(geometry, weight) : weight.channel % DP_QUAD; }

  Placed place(const Nonzero& weight) const {
    const size_t line = size_t(weight.channel / kWindow) * packed.source_plane + tap(weight);
    return {int32_t(line * kLinesPerQuad), uint8_t(weight.channel % kWindow), int8_t(weight.value)};
  }

 private:
  size_t tap(const Nonzero& weight) const { // bytes into a plane of quads
    if (geometry.is_direct()) return 0;
    const dp_conv_shape& s = geometry.shape;
    const int y = weight.ky * s.dilation_y, x = weight.kx * s.dilation_x;
    for (const Phase& phase : packed.phases)
      if (phase.y == y % s.stride_y && phase.x == x % s.stride_x)
        return phase.offset + size_t(y / s.stride_y * packed.pitch + x / s.stride_x) * DP_QUAD;
    throw std::logic_error("a tap without a phase");
  }
};

using Quads = std::map<int32_t, uint32_t>; // offset -> four weights

Quads quads_of(const std::vector<Nonzero>& row, const Source& source) {
  Quads quads;
  for (const Nonzero& weight : row)
    quads[source.offset(weight)] |= uint32_t(uint8_t(int8_t(weight.value))) << (8 * source.byte(weight));
  return quads;
}

// Of every row, those that fill up the last block included.
std::vector<Quads> all_quads(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, const Packed& packed) {
  const Source source{g, packed};
  std::vector<Quads> quads;
  for (const auto& row : rows) quads.push_back(quads_of(row, source));
  quads.resize(packed.scale.size());
  return quads;
}

// Of four weights the second of each pair whose sum x0 * w0 + x1 * w1 might not fit 16 bits, whatever bytes x are.
uint32_t beyond_16_bits(uint32_t weights) {
  constexpr int kMost = 32767 / 255;
  uint32_t rest = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const int a = int8_t(weights >> shift), b = int8_t(weights >> (shift + 8));
    const int up = std::max(a, 0) + std::max(b, 0), down = std::max(-a, 0) + std::max(-b, 0);
    if (up > kMost || down > kMost) rest |= weights & 0xffu << (shift + 8);
  }
  return rest;
}

std::vector<Entry> entries_of(const Quads& quads, const Target& target) {
  std::vector<Entry> entries;
  for (const auto& [offset, four] : quads) {
    const uint32_t rest = target.splits_pairs ? beyond_16_bits(four) : 0;
    entries.push_back({offset, four ^ rest});
    if (rest) entries.push_back({offset, rest});
  }
  return entries;
}

// Where rows have pixels to throw away.
void lay_out_lanes(const Geometry& g, Packed& packed) {
  packed.lanes.clear();
  if (packed.pitch == g.width_out) return;
  for (int vector = 0, next = 0; vector < packed.all_vectors; ++vector) {
    Lanes lanes{0, 0, next};
    for (int i = 0; i < DP_PIXELS; ++i) {
      const int pixel = vector * DP_PIXELS + i;
      if (pixel % packed.pitch >= g.width_out || pixel / packed.pitch >= g.height_out) continue;
      lanes.valid = uint16_t(lanes.valid | 1 << i);
      lanes.packed = uint16_t(lanes.packed << 1 | 1);
      ++next;
    }
    packed.lanes.push_back(lanes);
  }
}

void lay_out_source(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, Packed& packed) {
  const dp_conv_shape& s = g.shape;
  packed.pitch = g.width_out;
  packed.rows = g.height_out;
  packed.all_vectors = g.pixels_out / DP_PIXELS;
  if (g.is_direct()) {
    packed.source_plane = size_t(g.pixels_in) * DP_QUAD;
    return;
  }
  std::set<std::pair<int, int>> found;
  int below = 0, beside = 0; // how far taps reach, in pixels of a phase
  for (const auto& row : rows)
    for (const Nonzero& weight : row) {
      const int y = weight.ky * s.dilation_y, x = weight.kx * s.dilation_x;
      found.insert({y % s.stride_y, x % s.stride_x});
      below = std::max(below, y / s.stride_y);
      beside = std::max(beside, x / s.stride_x);
    }
  // Padding to the right is the next row's padding to the left; yet no two taps may fall on one pixel.
  const int padding = std::max(0, g.width_out + beside - s.pad_left - s.width); // of what taps reach to the right
  const int shared = s.stride_x == 1 ? std::min({s.pad_left, beside, padding, g.width_out - 1}) : 0;
  packed.pitch = g.width_out + beside - shared;
  // Whole vectors a row, where there are no more for it: a third of a 3 x 3 kernel's taps are then aligned.
  const int whole = round_up(packed.pitch, DP_PIXELS);
  if (whole * g.height_out <= round_up(packed.pitch * g.height_out, DP_PIXELS)) packed.pitch = whole;
  packed.rows = g.height_out + below;
  packed.all_vectors = round_up(g.height_out * packed.pitch, DP_PIXELS) / DP_PIXELS;
  // The last vector may begin in the last row, and its taps reach that far beyond.
  // An odd number of lines, so that planes do not meet in the same few sets of the first-level cache.
  const size_t bytes = size_t(round_up(packed.rows * packed.pitch + beside, DP_PIXELS) + DP_PIXELS) * DP_QUAD | DP_ALIGN;
  for (const auto& [y, x] : found) packed.phases.push_back({y, x, bytes * packed.phases.size()});
  packed.source_plane = bytes * packed.phases.size();
  packed.reach = (below * packed.pitch + beside) / DP_PIXELS + 1;
  plan_copy(g, packed);
  lay_out_lanes(g, packed);
}

int vectors_of_tile(const Geometry& g, const Packed& packed, const Target& target) {
  const int all = packed.all_vectors, beyond = (packed.rows - g.height_out) * packed.pitch / DP_PIXELS;
  const int copies = std::max<int>(1, int(packed.phases.size()));
  if (packed.is_mixed) return evenly(all, std::min(target.widest, std::max(1, kTileBytes / (int(packed.quad_parts.size()) * kVectorBytes))));
  const int fitting = packed.is_planewise ? target.widest : kTileBytes / (g.quads_in * kVectorBytes * copies) - beyond;
  return evenly(all, std::min(std::max(1, target.widest), std::max(kNarrowest, fitting)));
}

void pack_shared(const std::vector<Quads>& rows, int quads_out, const Target& target, Packed& packed) {
  packed.is_shared = true;
  for (int quad = 0; quad < quads_out; ++quad) {
    std::map<int32_t, std::array<uint32_t, DP_QUAD>> together;
    for (int r = 0; r < DP_QUAD; ++r)
      for (const auto& [offset, four] : rows[quad * DP_QUAD + r]) together[offset][r] = four;
    const size_t begin = packed.shared.size();
    for (const auto& [offset, four] : together)
      packed.shared.push_back({offset, {four[0], four[1], four[2], four[3]}});
    SharedRows found{int32_t(begin), int32_t(packed.shared.size() - begin), {}};
    for (int r = 0; r < DP_QUAD; ++r) {
      found.rest[r] = int32_t(packed.entries.size());
      for (size_t i = begin; i < packed.shared.size() && target.splits_pairs; ++i) {
        uint32_t& weights = packed.shared[i].weights[r];
        const uint32_t rest = beyond_16_bits(weights);
        weights ^= rest;
        if (rest) packed.entries.push_back({packed.shared[i].offset, rest});
      }
    }
    found.rest[DP_QUAD] = int32_t(packed.entries.size());
    packed.quads.push_back(found);
  }
  packed.steps = int64_t(packed.shared.size()) * DP_QUAD + int64_t(packed.entries.size());
}

// Weights and indices of a depthwise convolution that is computed straight from its input.
void pack_depthwise(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, Packed& packed) {
  const dp_conv_shape& s = g.shape;
  const int groups = packed.tap_groups = (s.kernel_x + DP_QUAD - 1) / DP_QUAD;
  packed.is_depthwise = true;
  packed.tap_weights.assign(size_t(g.quads_out) * size_t(s.kernel_y) * groups * DP_PIXELS, 0);
  for (size_t row = 0; row < rows.size(); ++row)
    for (const Nonzero& w : rows[row]) {
      const size_t line = (row / DP_QUAD * size_t(s.kernel_y) + size_t(w.ky)) * groups + size_t(w.kx / DP_QUAD);
      packed.tap_weights[line * DP_PIXELS + row % DP_QUAD * DP_QUAD + size_t(w.kx % DP_QUAD)] = int8_t(w.value);
    }
  for (int group = 0; group < groups; ++group)
    for (int pixel = 0; pixel < kVectorBytes / DP_PIXELS; ++pixel)
      for (int channel = 0; channel < DP_QUAD; ++channel)
        for (int tap = 0; tap < DP_QUAD; ++tap) {
          const int column = pixel * s.stride_x + group * DP_QUAD + tap; // beyond the kernel it meets a weight of zero
          packed.tap_index.push_back(uint8_t(std::min(column, DP_PIXELS - 1) * DP_QUAD + channel));
        }
  for (int unit = 0; unit < round_up(g.width_out, DP_PIXELS); unit += kVectorBytes / DP_PIXELS) {
    const int first = unit * s.stride_x - s.pad_left;
    uint16_t inside = 0;
    for (int pixel = 0; pixel < DP_PIXELS; ++pixel)
      if (first + pixel >= 0 && first + pixel < s.width) inside = uint16_t(inside | 1 << pixel);
    packed.tap_from.push_back(first * DP_QUAD);
    packed.tap_inside.push_back(inside);
  }
  packed.steps = int64_t(g.quads_out) * s.kernel_y * groups * (kVectorBytes / DP_PIXELS);
}

bool goes_without_copy(const Geometry& g, const Packed& packed, const Target& target) {
  const dp_conv_shape& s = g.shape;
  return target.depthwise && packed.is_planewise && s.kernel_x <= kMostTaps && s.kernel_y <= kMostTaps && s.stride_x <= 2 &&
         s.dilation_x == 1 && s.dilation_y == 1 && !s.has_residual;
}

void pack_group(const std::vector<std::vector<Entry>>& rows, const std::vector<int>& members, Packed& packed) {
  size_t length = 0;
  for (int row : members) length = std::max(length, rows[row].size());
  const size_t begin = packed.entries.size(), together = size_t(packed.together);
  packed.entries.resize(begin + length * together, Entry{0, 0});
  for (size_t r = 0; r < together; ++r) {
    if (r >= members.size()) {
      packed.grouped.push_back({kBlockRows, 0, 0.0f});
      continue;
    }
    packed.grouped.push_back({members[r] % kBlockRows, packed.bias[size_t(members[r])], packed.scale[size_t(members[r])]});
    size_t at = begin + r;
    for (const Entry& entry : rows[size_t(members[r])]) {
      packed.entries[at] = entry;
      at += together;
    }
  }
  packed.groups.push_back({int32_t(begin), int32_t(length)});
}

// The same of rows two by two: each pair has all quads that either reads.
void pack_pairs(const std::vector<Quads>& quads, int quads_out, const Target& target, Packed& packed) {
  packed.is_paired = true;
  std::vector<std::vector<PairEntry>> pairs(size_t(quads_out) * DP_QUAD / 2);
  for (size_t pair = 0; pair < pairs.size(); ++pair) {
    std::map<int32_t, std::array<uint32_t, 2>> either;
    for (size_t r = 0; r < 2; ++r)
      for (const auto& [offset, four] : quads[2 * pair + r]) either[offset][r] = four;
    for (const auto& [offset, four] : either) {
      std::array<uint32_t, 2> rest{};
      for (size_t r = 0; r < 2 && target.splits_pairs; ++r) rest[r] = beyond_16_bits(four[r]);
      pairs[pair].push_back({offset, {four[0] ^ rest[0], four[1] ^ rest[1]}});
      if (rest[0] | rest[1]) pairs[pair].push_back({offset, {rest[0], rest[1]}});
    }
  }
  constexpr size_t kBlock = kBlockRows / 2;
  const size_t together = size_t(packed.together) / 2;
  for (size_t block = 0; block < pairs.size(); block += kBlock) {
    packed.block_groups.push_back(int32_t(packed.groups.size()));
    std::vector<size_t> order(std::min(kBlock, pairs.size() - block));
    std::iota(order.begin(), order.end(), block);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return pairs[a].size() < pairs[b].size(); });
    for (size_t i = 0; i < order.size(); i += together) {
      const size_t members = std::min(together, order.size() - i), begin = packed.pairs.size();
      const size_t length = pairs[order[i + members - 1]].size();
      packed.pairs.resize(begin + length * together, PairEntry{0, {0, 0}});
      for (size_t p = 0; p < together; ++p)
        for (size_t r = 0; r < 2; ++r) {
          const size_t row = p < members ? 2 * order[i + p] + r : 0;
          packed.grouped.push_back(p < members ? GroupedRow{int32_t(row % kBlockRows), packed.bias[row], packed.scale[row]}
                                               : GroupedRow{kBlockRows, 0, 0.0f});
        }
      for (size_t p = 0; p < members; ++p)
        for (size_t e = 0; e < pairs[order[i + p]].size(); ++e) packed.pairs[begin + e * together + p] = pairs[order[i + p]][e];
      packed.groups.push_back({int32_t(begin), int32_t(length)});
    }
  }
  packed.block_groups.push_back(int32_t(packed.groups.size()));
  packed.steps = 2 * int64_t(packed.pairs.size());
}

void pack_rows(const std::vector<Quads>& quads, int quads_out, const Target& target, Packed& packed) {
  std::vector<std::vector<Entry>> rows;
  for (const Quads& row : quads) rows.push_back(entries_of(row, target));
  rows.resize(size_t(quads_out) * DP_QUAD); // rows that only fill up the last block would be rounded like any other
  for (size_t block = 0; block < rows.size(); block += kBlockRows) {
    packed.block_groups.push_back(int32_t(packed.groups.size()));
    std::vector<int> order(std::min(size_t(kBlockRows), rows.size() - block));
    std::iota(order.begin(), order.end(), int(block));
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return rows[a].size() < rows[b].size(); });
    for (size_t i = 0; i < order.size(); i += size_t(packed.together)) {
      const size_t end = std::min(order.size(), i + size_t(packed.together));
      pack_group(rows, {order.begin() + long(i), order.begin() + long(end)}, packed);
    }
  }
  packed.block_groups.push_back(int32_t(packed.groups.size()));
  packed.steps = int64_t(packed.entries.size());
}

// Whether a plan for windows exists and costs less than `quads` multiplications of a vector.
bool windows_pay(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, const Target& target, double quads,
                 Packed& packed) {
  const size_t bytes = packed.source_plane * kLinesPerQuad * size_t(g.windows_in());
  if (!target.lines || bytes > size_t(std::numeric_limits<int32_t>::max())) return false; // a line's offset is 32 bits
  size_t nonzero = 0;
  for (const auto& row : rows) nonzero += row.size();
  if (windows_cost(g, packed, target, nonzero / kWindow) >= quads) return false; // even were every step full
  const Source source{g, packed};
  std::vector<std::vector<Placed>> placed(packed.scale.size());
  for (size_t row = 0; row < rows.size(); ++row)
    for (const Nonzero& weight : rows[row]) placed[row].push_back(source.place(weight));
  packed.vectors = window_vectors(g, packed);
  pack_windows(placed, packed);
  return windows_cost(g, packed, target, packed.windows.size()) < quads;
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

// No sum with the bias leaves 32 bits: check_range() counts 255 for each of these 128.
int32_t raised(const Target& target, const std::vector<Nonzero>& row) {
  int32_t sum = 0;
  for (const Nonzero& weight : row) sum += weight.value;
  return target.lower ? sum * kLowered : 0;
}

Packed pack(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, const dp_conv_weights& weights,
            const Target& target) {
  Packed packed;
  packed.scale.assign(size_t(round_up(g.quads_out, kBlockQuads)) * DP_QUAD, 0.0f);
  packed.bias.assign(packed.scale.size(), 0);
  std::copy_n(weights.scale, rows.size(), packed.scale.begin());
  for (size_t row = 0; row < rows.size(); ++row) packed.bias[row] = weights.bias[row] + raised(target, rows[row]);
  lay_out_source(g, rows, packed);
  packed.is_planewise = !g.is_direct() && g.shape.groups == g.shape.channels_in && g.shape.groups == g.shape.channels_out;
  if (goes_without_copy(g, packed, target)) {
    pack_depthwise(g, rows, packed);
    return packed;
  }
  Packed mixed = packed;
  packed.vectors = vectors_of_tile(g, packed, target);
  const std::vector<Quads> quads = all_quads(g, rows, packed);
  packed.together = target.together ? target.together(packed.vectors, false) : 1;
  Packed shared = packed, paired = packed, windows = packed;
  pack_shared(quads, g.quads_out, target, shared);
  if (packed.is_planewise) return shared;
  pack_rows(quads, g.quads_out, target, packed);
  double cheaper = std::min(double(shared.steps) / kOwnLoad, double(packed.steps));
  if (target.together) {
    paired.together = target.together(paired.vectors, true);
    pack_pairs(quads, g.quads_out, target, paired);
    if (double(paired.steps) / kOwnLoad < cheaper) {
      cheaper = double(paired.steps) / kOwnLoad;
      std::swap(packed, paired);
    }
  }
  if (lay_out_mixed(g, target, mixed)) {
    lay_out_lanes(g, mixed);
    mixed.vectors = vectors_of_tile(g, mixed, target);
    pack_shared(all_quads(g, rows, mixed), g.quads_out, target, mixed);
    if (mixed_cost(mixed) / kOwnLoad < cheaper * packed.all_vectors) return mixed;
  }
  if (windows_pay(g, rows, target, cheaper * packed.all_vectors, windows)) return windows;
  return double(shared.steps) / kOwnLoad <= cheaper ? shared : packed;
}

} // namespace dp
