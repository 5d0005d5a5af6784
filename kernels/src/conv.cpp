// The C functions: create, run, and cut the work into tiles.
#include "conv.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>

using namespace dp;

struct dp_conv {
  Geometry geometry;
  const Target& target;
  std::vector<std::vector<Nonzero>> rows; // of the oracle only
  Packed packed;
  Epilogue epilogue;
};

namespace {

// Of the second-level cache, what activations may take.
constexpr size_t kSecondLevel = 640 * 1024;

// Most pieces a depthwise convolution is cut into; each has two planes of scratch.
constexpr int kPlanePieces = 64;

struct Run {
  const dp_conv& conv;
  const uint8_t* x;
  const uint8_t* residual;
  uint8_t* y;
  uint8_t* scratch;
  int tiles, row_pieces, line_pieces, plane_pieces;

  bool makes_own_lines() const { return conv.packed.is_windows && conv.geometry.is_direct() && row_pieces == 1; }
};

void gather_one(void* context, int32_t quad) {
  const Run& run = *static_cast<Run*>(context);
  const Packed& packed = run.conv.packed;
  gather(run.conv.geometry, packed, run.conv.target, quad, run.x, run.scratch + size_t(quad) * packed.source_plane);
}

void lines_one(void* context, int32_t i) {
  const Run& run = *static_cast<Run*>(context);
  const Geometry& g = run.conv.geometry;
  const int all = g.is_direct() ? run.conv.packed.all_vectors : run.conv.packed.rows;
  const int window = i % g.windows_in(), piece = i / g.windows_in();
  const int begin = begin_of(all, piece, run.line_pieces), end = begin_of(all, piece + 1, run.line_pieces);
  gather_lines(g, run.conv.packed, run.conv.target, window, begin, end, run.x, run.scratch);
}

// All of tile `number` but its source and its channels.
Tile tile_of(const Run& run, int number) {
  const Geometry& g = run.conv.geometry;
  const Packed& packed = run.conv.packed;
  const int begin = begin_of(packed.all_vectors, number, run.tiles);
  Tile tile{};
  tile.packed = &packed;
  tile.epilogue = &run.conv.epilogue;
  tile.lanes = packed.lanes.empty() ? nullptr : packed.lanes.data() + begin;
  const size_t to = tile.lanes ? 0 : size_t(begin) * kVectorBytes;
  tile.residual = run.residual ? run.residual + to : nullptr;
  tile.out = run.y + to;
  tile.out_plane = size_t(g.pixels_out) * DP_QUAD;
  const int end = begin_of(packed.all_vectors, number + 1, run.tiles);
  tile.vectors = end - begin;
  tile.pixels = std::min(end * DP_PIXELS, g.height_out * packed.pitch) - begin * DP_PIXELS;
  return tile;
}

size_t first_byte(const Run& run, int number) {
  return size_t(begin_of(run.conv.packed.all_vectors, number, run.tiles)) * kVectorBytes;
}

void tile_one(void* context, int32_t i) {
  const Run& run = *static_cast<Run*>(context);
  const Geometry& g = run.conv.geometry;
  const Packed& packed = run.conv.packed;
  const int piece = i / run.tiles, number = i % run.tiles;
  Tile tile = tile_of(run, number);
  if (packed.is_windows)
    tile.source = run.scratch + first_byte(run, number) * kLinesPerQuad;
  else
    tile.source = (run.scratch && !g.is_direct() ? run.scratch : run.x) + first_byte(run, number);
  const int unit = packed.is_windows ? kWindowQuads : packed.is_shared ? 1 : kBlockQuads;
  const int units = (g.quads_out + unit - 1) / unit;
  tile.first = begin_of(units, piece, run.row_pieces) * unit;
  tile.last = std::min(g.quads_out, begin_of(units, piece + 1, run.row_pieces) * unit);
  if (run.makes_own_lines()) {
    const int begin = begin_of(packed.all_vectors, number, run.tiles);
    for (int window = 0; window < g.windows_in(); ++window)
      gather_lines(g, packed, run.conv.target, window, begin, begin + tile.vectors, run.x, run.scratch);
  }
  run.conv.target.tile(tile);
}

// A share of a depthwise convolution's quads, each copied and computed while it is in the first-level cache. The next one
// is copied first: what was just written in whole vectors cannot be read between them before it has left the CPU's queue.
void planes_one(void* context, int32_t piece) {
  const Run& run = *static_cast<Run*>(context);
  const Packed& packed = run.conv.packed;
  const int quads = run.conv.geometry.quads_out;
  const int first = begin_of(quads, piece, run.plane_pieces), last = begin_of(quads, piece + 1, run.plane_pieces);
  const auto plane = [&](int quad) { return run.scratch + (size_t(piece) * 2 + size_t(quad % 2)) * packed.source_plane; };
  const auto copy = [&](int quad) { gather(run.conv.geometry, packed, run.conv.target, quad, run.x, plane(quad)); };
  Tile tile = tile_of(run, 0);
  if (first < last) copy(first);
  for (int quad = first; quad < last; ++quad) {
    if (quad + 1 < last) copy(quad + 1);
    tile.source = plane(quad);
    tile.first = quad;
    tile.last = quad + 1;
    run.conv.target.tile(tile);
  }
}

void equation_one(void* context, int32_t row) {
  const Run& run = *static_cast<Run*>(context);
  run_equation(run.conv.geometry, run.conv.rows, run.conv.packed, run.conv.epilogue, row, run.x, run.residual, run.y);
}

void each(dp_parallel parallel, void* pool, int32_t count, void (*body)(void*, int32_t), void* context) {
  if (parallel && count > 1) return parallel(pool, count, body, context);
  for (int32_t i = 0; i < count; ++i) body(context, i);
}

Epilogue epilogue_of(const dp_conv_shape& s) {
  const float zero_point = float(s.output_zero_point);
  const float shift = s.has_residual ? std::fma(-float(s.residual_zero_point), s.residual_scale, zero_point) : zero_point;
  return {s.residual_scale, s.hard_swish_slope, shift, s.low, s.high};
}

void fail(char* error, size_t bytes, const char* what) {
  if (error && bytes) std::snprintf(error, bytes, "%s", what);
}

} // namespace

extern "C" {

dp_conv* dp_conv_create(const dp_conv_shape* shape, const dp_conv_weights* weights, const char* target, char* error,
                        size_t error_bytes) {
  try {
    const Geometry geometry(*shape);
    const Target& chosen = choose_target(target);
    auto rows = read_weights(geometry, *weights);
    Packed packed = pack(geometry, rows, *weights, chosen);
    if (chosen.tile) rows.clear();
    return new dp_conv{geometry, chosen, std::move(rows), std::move(packed), epilogue_of(*shape)};
  } catch (const std::exception& failure) {
    fail(error, error_bytes, failure.what());
    return nullptr;
  }
}

void dp_conv_destroy(dp_conv* conv) { delete conv; }

size_t dp_conv_scratch_bytes(const dp_conv* conv) {
  const Geometry& g = conv->geometry;
  if (conv->packed.is_windows) return conv->packed.source_plane * kLinesPerQuad * size_t(g.windows_in());
  if (!conv->target.tile || g.is_direct()) return 0;
  return conv->packed.source_plane * size_t(conv->packed.is_planewise ? 2 * std::min(g.quads_in, kPlanePieces) : g.quads_in);
}

void dp_conv_run(const dp_conv* conv, int32_t batch, const uint8_t* x, const uint8_t* residual, uint8_t* y, void* scratch,
                 int32_t threads, dp_parallel parallel, void* pool) {
  const Geometry& g = conv->geometry;
  if (!g.shape.has_residual) residual = nullptr;
  const size_t in = size_t(g.quads_in) * g.pixels_in * DP_QUAD, out = size_t(g.quads_out) * g.pixels_out * DP_QUAD;
  for (int32_t n = 0; n < batch; ++n, x += in, y += out, residual += residual ? out : 0) {
    Run run{*conv, x, residual, y, static_cast<uint8_t*>(scratch), 0, 1, 1, 1};
    if (!conv->target.tile) {
      each(parallel, pool, g.shape.channels_out, equation_one, &run);
      continue;
    }
    if (conv->packed.is_planewise) {
      run.tiles = 1;
      run.plane_pieces = std::max(1, std::min({int(threads), g.quads_out, kPlanePieces}));
      each(parallel, pool, run.plane_pieces, planes_one, &run);
      continue;
    }
    run.tiles = (conv->packed.all_vectors + conv->packed.vectors - 1) / conv->packed.vectors;
    // Few tiles: each thread also takes a share of the output channels. And what does not fit the second-level cache is
    // written block by block of channels, so that few planes at a time are read and written from end to end.
    while (run.tiles * run.row_pieces < threads && run.row_pieces < g.quads_out) ++run.row_pieces;
    if (!conv->packed.is_shared && !conv->packed.is_windows && in <= kSecondLevel && in + out + (residual ? out : 0) > kSecondLevel)
      run.row_pieces = (g.quads_out + kBlockQuads - 1) / kBlockQuads;
    while (run.line_pieces * g.windows_in() < threads) ++run.line_pieces;
    if (conv->packed.is_windows && !run.makes_own_lines())
      each(parallel, pool, g.windows_in() * run.line_pieces, lines_one, &run);
    else if (!conv->packed.is_windows && !g.is_direct())
      each(parallel, pool, g.quads_in, gather_one, &run);
    each(parallel, pool, run.tiles * run.row_pieces, tile_one, &run);
  }
}

int64_t dp_conv_steps(const dp_conv* conv) { return conv->packed.steps; }

size_t dp_conv_bytes(const dp_conv* conv) {
  const Packed& p = conv->packed;
  return p.quads.size() * sizeof(SharedRows) + p.shared.size() * sizeof(SharedEntry) + p.groups.size() * sizeof(RowGroup) +
         p.grouped.size() * sizeof(GroupedRow) + p.entries.size() * sizeof(Entry) +
         p.windows.size() * (sizeof(WindowStep) + sizeof(int32_t)) + p.scale.size() * (sizeof(float) + sizeof(int32_t));
}

const char* dp_conv_target(const dp_conv* conv) { return conv->target.name; }

int dp_to_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, const uint8_t* nhwc, uint8_t* c4) {
  try {
    const Target& chosen = choose_target(target);
    const size_t in = size_t(pixels) * channels, out = size_t(round_up(channels, DP_QUAD)) * round_up(pixels, DP_PIXELS);
    for (int32_t n = 0; n < batch; ++n) chosen.to_c4(pixels, channels, nhwc + n * in, c4 + n * out);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

int dp_from_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, const uint8_t* c4, uint8_t* nhwc) {
  try {
    const Target& chosen = choose_target(target);
    const size_t in = size_t(round_up(channels, DP_QUAD)) * round_up(pixels, DP_PIXELS), out = size_t(pixels) * channels;
    for (int32_t n = 0; n < batch; ++n) chosen.from_c4(pixels, channels, c4 + n * in, nhwc + n * out);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}
}
