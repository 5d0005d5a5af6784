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

  // Its input as it comes: no padding, stride or dilation, and no target that wants it lowered.
  bool reads_image() const { return geometry.is_direct() && !target.lower; }
};

namespace {

// Of the second-level cache, what activations may take.
constexpr size_t kSecondLevel = 640 * 1024;

// Vectors of a plane that threads do not share.
constexpr int kShortPlane = 16;

// How the work is cut for so many threads. A piece has scratch of its own.
struct Cut {
  int tiles = 1, row_pieces = 1, pieces = 1, line_pieces = 1;
};

struct Run {
  const dp_conv& conv;
  const uint8_t* x;
  const uint8_t* residual;
  uint8_t* y;
  uint8_t* scratch;
  Cut cut;
  bool alone = true; // pieces run one after the other

  bool makes_own_lines() const { return conv.packed.is_windows && conv.geometry.is_direct() && cut.row_pieces == 1; }
};

void lines_one(void* context, int32_t i) {
  const Run& run = *static_cast<Run*>(context);
  const Geometry& g = run.conv.geometry;
  const int all = g.is_direct() ? run.conv.packed.all_vectors : run.conv.packed.rows;
  const int window = i % g.windows_in(), piece = i / g.windows_in();
  const int begin = begin_of(all, piece, run.cut.line_pieces), end = begin_of(all, piece + 1, run.cut.line_pieces);
  gather_lines(g, run.conv.packed, run.conv.target, window, begin, end, run.x, run.scratch, begin);
}

// All of tile `number` but its source and its channels.
Tile tile_of(const Run& run, int number) {
  const Geometry& g = run.conv.geometry;
  const Packed& packed = run.conv.packed;
  const int begin = begin_of(packed.all_vectors, number, run.cut.tiles);
  Tile tile{};
  tile.packed = &packed;
  tile.epilogue = &run.conv.epilogue;
  tile.lanes = packed.lanes.empty() ? nullptr : packed.lanes.data() + begin;
  const size_t to = tile.lanes ? 0 : size_t(begin) * kVectorBytes;
  tile.residual = run.residual ? run.residual + to : nullptr;
  tile.out = run.y + to;
  tile.out_plane = size_t(g.pixels_out) * DP_QUAD;
  const int end = begin_of(packed.all_vectors, number + 1, run.cut.tiles);
  tile.vectors = end - begin;
  tile.pixels = std::min(end * DP_PIXELS, g.height_out * packed.pitch) - begin * DP_PIXELS;
  return tile;
}

size_t copy_bytes(const dp_conv& conv) { return conv.packed.source_plane * size_t(conv.geometry.quads_in); }

size_t first_byte(const Run& run, int number) {
  return size_t(begin_of(run.conv.packed.all_vectors, number, run.cut.tiles)) * kVectorBytes;
}

// Output quads that are packed together, and how many times that.
int block_quads(const dp_conv& conv) { return conv.packed.is_windows ? kWindowQuads : conv.packed.is_shared ? 1 : kBlockQuads; }
int blocks_of(const dp_conv& conv) { return (conv.geometry.quads_out + block_quads(conv) - 1) / block_quads(conv); }

// Piece `piece` of the output channels in the pixels of tile `number`.
void run_tile(const Run& run, const uint8_t* source, int piece, int number) {
  const int quads = block_quads(run.conv), blocks = blocks_of(run.conv);
  Tile tile = tile_of(run, number);
  tile.source = source;
  tile.first = begin_of(blocks, piece, run.cut.row_pieces) * quads;
  tile.last = std::min(run.conv.geometry.quads_out, begin_of(blocks, piece + 1, run.cut.row_pieces) * quads);
  run.conv.target.tile(tile);
}

void tile_one(void* context, int32_t i) {
  const Run& run = *static_cast<Run*>(context);
  const Geometry& g = run.conv.geometry;
  const Packed& packed = run.conv.packed;
  const int piece = i / run.cut.tiles, number = i % run.cut.tiles;
  const int begin = begin_of(packed.all_vectors, number, run.cut.tiles), end = begin_of(packed.all_vectors, number + 1, run.cut.tiles);
  if (!packed.is_windows) return run_tile(run, run.x + size_t(begin) * kVectorBytes, piece, number);
  // One thread writes every tile's lines to one place, where they stay in the cache.
  const int place = run.makes_own_lines() && run.alone ? 0 : begin;
  for (int window = 0; run.makes_own_lines() && window < g.windows_in(); ++window)
    gather_lines(g, packed, run.conv.target, window, begin, end, run.x, run.scratch, place);
  run_tile(run, run.scratch + size_t(place) * kVectorBytes * kLinesPerQuad, piece, number);
}

// A share of the tiles of a convolution that reads a copy, or with more threads than tiles a share of a tile's channels.
// Each share makes its own copy of what it reads: a line that another core has just written comes from there at several
// times the price of copying it.
void copied_one(void* context, int32_t i) {
  const Run& run = *static_cast<Run*>(context);
  const Packed& packed = run.conv.packed;
  const int shares = std::min(run.cut.pieces, run.cut.tiles), share = i % shares;
  const int first = begin_of(run.cut.tiles, share, shares), last = begin_of(run.cut.tiles, share + 1, shares);
  const int begin = begin_of(packed.all_vectors, first, run.cut.tiles), end = begin_of(packed.all_vectors, last, run.cut.tiles);
  uint8_t* copy = run.scratch + size_t(i) * copy_bytes(run.conv);
  for (int quad = 0; quad < run.conv.geometry.quads_in; ++quad)
    gather(run.conv.geometry, packed, run.conv.target, {quad, begin, end}, run.x, copy + size_t(quad) * packed.source_plane);
  const int parts = run.cut.pieces / shares, part = i / shares;
  const int begin_piece = begin_of(run.cut.row_pieces, part, parts), end_piece = begin_of(run.cut.row_pieces, part + 1, parts);
  for (int piece = begin_piece; piece < end_piece; ++piece)
    for (int number = first; number < last; ++number) run_tile(run, copy + first_byte(run, number), piece, number);
}

// The same of a stem, whose quads are mixed tile by tile from a padded image.
void mixed_one(void* context, int32_t i) {
  const Run& run = *static_cast<Run*>(context);
  const Packed& packed = run.conv.packed;
  const Geometry& g = run.conv.geometry;
  const int shares = std::min(run.cut.pieces, run.cut.tiles), share = i % shares;
  const int first = begin_of(run.cut.tiles, share, shares), last = begin_of(run.cut.tiles, share + 1, shares);
  const int begin = begin_of(packed.all_vectors, first, run.cut.tiles), end = begin_of(packed.all_vectors, last, run.cut.tiles);
  const int parts = run.cut.pieces / shares, part = i / shares;
  const int begin_piece = begin_of(run.cut.row_pieces, part, parts), end_piece = begin_of(run.cut.row_pieces, part + 1, parts);
  uint8_t* padded = run.scratch + size_t(i) * mixed_bytes(packed);
  uint8_t* quads = padded + padded_bytes(packed);
  const int across = packed.pitch / DP_PIXELS, reach = packed.padded_rows - (g.height_out - 1) * g.shape.stride_y;
  if (begin < end)
    pad_rows(g, packed, begin / across * g.shape.stride_y, (end - 1) / across * g.shape.stride_y + reach, run.x, padded);
  for (int number = first; number < last; ++number) {
    mix_tile(g, packed, run.conv.target, begin_of(packed.all_vectors, number, run.cut.tiles),
             begin_of(packed.all_vectors, number + 1, run.cut.tiles), padded, quads);
    for (int piece = begin_piece; piece < end_piece; ++piece) run_tile(run, quads, piece, number);
  }
}

// A share of a depthwise convolution's quads, each copied and computed while it is in the first-level cache. The next one
// is copied first: what was just written in whole vectors cannot be read between them before it has left the CPU's queue.
void planes_one(void* context, int32_t piece) {
  const Run& run = *static_cast<Run*>(context);
  const Packed& packed = run.conv.packed;
  const int quads = run.conv.geometry.quads_out;
  const int first = begin_of(quads, piece, run.cut.pieces), last = begin_of(quads, piece + 1, run.cut.pieces);
  if (packed.is_depthwise) {
    const Geometry& g = run.conv.geometry;
    const size_t in = size_t(g.pixels_in) * DP_QUAD, out = size_t(g.pixels_out) * DP_QUAD;
    for (int quad = first; quad < last; ++quad)
      run.conv.target.depthwise(g, packed, run.conv.epilogue, {quad, run.x + size_t(quad) * in, run.y + size_t(quad) * out});
    return;
  }
  const auto plane = [&](int quad) { return run.scratch + (size_t(piece) * 2 + size_t(quad % 2)) * packed.source_plane; };
  const auto copy = [&](int quad) { gather(run.conv.geometry, packed, run.conv.target, {quad, 0, packed.all_vectors}, run.x, plane(quad)); };
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

Cut cut_of(const dp_conv& conv, int threads) {
  const Geometry& g = conv.geometry;
  const Packed& packed = conv.packed;
  Cut cut;
  if (packed.is_planewise) {
    cut.pieces = std::max(1, std::min(threads, g.quads_out));
    return cut;
  }
  cut.tiles = (packed.all_vectors + packed.vectors - 1) / packed.vectors;
  // Threads take shares of the output channels where there are few tiles, and where planes are short: a core fetches lines
  // in pairs, and such as two cores write at once go to and fro. And what does not fit the second-level cache is written
  // block by block of channels, so that few planes at a time are read and written from end to end.
  const int blocks = blocks_of(conv);
  const bool is_short = conv.reads_image() && packed.all_vectors <= kShortPlane;
  while ((is_short ? 1 : cut.tiles) * cut.row_pieces < threads && cut.row_pieces < blocks) ++cut.row_pieces;
  const size_t in = size_t(g.quads_in) * g.pixels_in * DP_QUAD, out = size_t(g.quads_out) * g.pixels_out * DP_QUAD;
  const bool is_large = in <= kSecondLevel && in + out * (g.shape.has_residual ? 2 : 1) > kSecondLevel;
  if (!packed.is_shared && !packed.is_windows && is_large) cut.row_pieces = blocks;
  while (cut.line_pieces * g.windows_in() < threads) ++cut.line_pieces;
  cut.pieces = cut.tiles >= threads ? std::max(1, threads) : cut.tiles * cut.row_pieces;
  return cut;
}

Epilogue epilogue_of(const dp_conv_shape& s) {
  const float zero_point = float(s.output_zero_point);
  const float shift = s.has_residual ? std::fma(-float(s.residual_zero_point), s.residual_scale, zero_point) : zero_point;
  return {s.residual_scale, s.sum_low + shift, s.sum_high + shift, s.hard_swish_slope, s.swish_step / kGatePiece, shift,
          s.low, s.high};
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

size_t dp_conv_scratch_bytes(const dp_conv* conv, int32_t threads) {
  const Geometry& g = conv->geometry;
  const Packed& packed = conv->packed;
  if (packed.is_windows) return packed.source_plane * kLinesPerQuad * size_t(g.windows_in());
  if (!conv->target.tile || conv->reads_image() || packed.is_depthwise) return 0;
  if (packed.is_mixed) return size_t(cut_of(*conv, threads).pieces) * mixed_bytes(packed);
  return size_t(cut_of(*conv, threads).pieces) * (packed.is_planewise ? 2 * packed.source_plane : copy_bytes(*conv));
}

void dp_conv_run(const dp_conv* conv, int32_t batch, const uint8_t* x, const uint8_t* residual, uint8_t* y, void* scratch,
                 int32_t threads, dp_parallel parallel, void* pool) {
  const Geometry& g = conv->geometry;
  const bool is_windows = conv->packed.is_windows;
  if (!g.shape.has_residual) residual = nullptr;
  const size_t in = size_t(g.quads_in) * g.pixels_in * DP_QUAD, out = size_t(g.quads_out) * g.pixels_out * DP_QUAD;
  for (int32_t n = 0; n < batch; ++n, x += in, y += out, residual += residual ? out : 0) {
    Run run{*conv, x, residual, y, static_cast<uint8_t*>(scratch), {}, !parallel};
    if (!conv->target.tile) {
      each(parallel, pool, g.shape.channels_out, equation_one, &run);
      continue;
    }
    run.cut = cut_of(*conv, threads);
    const int tiles = run.cut.tiles * run.cut.row_pieces;
    if (is_windows && !run.makes_own_lines())
      each(parallel, pool, g.windows_in() * run.cut.line_pieces, lines_one, &run);
    if (conv->packed.is_planewise)
      each(parallel, pool, run.cut.pieces, planes_one, &run);
    else if (conv->packed.is_mixed)
      each(parallel, pool, run.cut.pieces, mixed_one, &run);
    else if (is_windows || conv->reads_image())
      each(parallel, pool, tiles, tile_one, &run);
    else
      each(parallel, pool, run.cut.pieces, copied_one, &run);
  }
}

int64_t dp_conv_steps(const dp_conv* conv) { return conv->packed.steps; }

size_t dp_conv_bytes(const dp_conv* conv) {
  const Packed& p = conv->packed;
  return p.quads.size() * sizeof(SharedRows) + p.shared.size() * sizeof(SharedEntry) + p.groups.size() * sizeof(RowGroup) +
         p.grouped.size() * sizeof(GroupedRow) + p.entries.size() * sizeof(Entry) + p.pairs.size() * sizeof(PairEntry) +
         p.tap_weights.size() + p.tap_index.size() + p.windows.size() * (sizeof(WindowStep) + sizeof(int32_t)) + p.scale.size() * (sizeof(float) + sizeof(int32_t));
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
