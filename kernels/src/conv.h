// What the parts of a convolution share: geometry, packed weights, and the one function a vector target provides.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "deploypruner/kernels.h"

namespace dp {

constexpr int kVectorBytes = DP_PIXELS * DP_QUAD;

inline int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Where piece `number` of `pieces` begins; the next one's beginning is its end.
inline int begin_of(int all, int number, int pieces) { return int(int64_t(all) * number / pieces); }

// The most that a piece holds when `all` are cut into pieces of at most `most`, as even as can be.
inline int evenly(int all, int most) {
  const int pieces = (all + most - 1) / most;
  return (all + pieces - 1) / pieces;
}

// A weight that is not zero, where the equation has it.
struct Nonzero {
  int32_t channel, ky, kx, value;
};

// Four weights of one output channel that meet four neighbouring input channels of one tap.
struct Entry {
  int32_t offset;   // bytes from the tile's first pixel to the sixteen pixels' quad
  uint32_t weights; // int8 x 4, first channel in the lowest byte
};

// SPARSE ROWS. Output channels of one block, sorted by how many entries they have and taken `Packed::together` at a
// time; within a group the shorter ones are filled up with zeros. Their entries alternate, so that one loop of
// `length` iterations feeds all their accumulators: enough independent sums to hide the latency of a multiplication,
// and hardly a loop whose end the CPU cannot foresee.
struct RowGroup {
  int32_t begin, length; // entries[begin + i * together + r]
};
struct GroupedRow {
  int32_t row; // in its block; kBlockRows for one that only fills up
  int32_t bias;
  float scale;
};
constexpr int kBlockQuads = 16, kBlockRows = kBlockQuads * DP_QUAD;

// PAIRED ROWS. The same of output channels two by two that read the same quads: each loaded vector is multiplied twice. A
// group's rows are pairs of neighbours, `Packed::together` / 2 of them, and a pair has one entry where two rows have two.
struct PairEntry {
  int32_t offset;
  uint32_t weights[2];
};

// SHARED ROWS. Four neighbouring output channels that read the same quads: dense and depthwise layers.
struct SharedRows {
  int32_t begin, length;
  int32_t rest[DP_QUAD + 1]; // entries[rest[r] .. rest[r + 1]): what is left of row r where pairs are split
};
struct SharedEntry {
  int32_t offset;
  uint32_t weights[4]; // of the four output channels
};

// WINDOWS. Sixteen output channels; a step multiplies, in one pixel, up to four weights of each by activations from
// anywhere in a window: 64 input channels from a multiple of 64 on, of one tap. The source is a copy of the input pixel by
// pixel: for each window a plane of lines, a line the window's 64 bytes of one pixel.
constexpr int kWindow = 64, kWindowRows = 16, kWindowQuads = kWindowRows / DP_QUAD, kLinesPerQuad = kWindow / DP_QUAD;
struct alignas(DP_ALIGN) WindowStep {
  uint8_t index[kWindow];  // of the byte of the line that meets each weight
  int8_t weights[kWindow]; // [row][4]
};
struct Placed {
  int32_t line; // bytes from the tile's first pixel
  uint8_t index;
  int8_t weight;
};

// A padded, strided or dilated convolution reads its input from a copy: for each (y, x) modulo the stride, the pixels of
// the padded image that are so, row after row with `pitch` pixels from one to the next. A tap is then a constant
// distance away, for every output pixel; an output row is as long as the pitch, and its last pixels are thrown away.
struct Phase {
  int y, x;
  size_t offset; // bytes from the plane's beginning
};

// Lanes of a vector of that copy that are one row of the input: lane i is `from` + 4 i * stride bytes into the plane.
struct Segment {
  int32_t from;
  uint16_t lanes;
  uint16_t low, high; // with a stride of 2: what to read of the sixteen pixels from there on, and of the next sixteen
};

// Which of a vector's sixteen pixels are in the output, as many lanes from the first on, and where the first of them goes.
struct Lanes {
  uint16_t valid, packed;
  int32_t first;
};

// MIXED QUADS of a stem: what one permutation puts into a quad, of one row of the kernel. See mixed.cpp.
struct alignas(DP_ALIGN) MixedPart {
  uint8_t index[kVectorBytes]; // of 128 bytes of the padded image
  uint64_t bytes;              // which of the 64 it puts
  int32_t from;                // from what the vector's first pixel reads first, to those 128
  int32_t ky, kx;              // of its first value
};

struct Epilogue {
  float residual_scale, sum_low, sum_high; // limits of what a residual is added to, `shift` included
  float hard_swish_slope, swish_rate;      // rate: the output's step over kGatePiece
  float shift;                             // the output's zero point, less what the residual's adds
  int32_t low, high;

  bool has_swish() const { return hard_swish_slope > 0 || swish_rate > 0; }
};

// The gate of a swish, sigmoid(kGatePiece * t): a cubic for each unit of t around an integer n, which is in column n mod 16,
// the lowest power first. Fitted so that the greatest error, times max(|1.5 t|, 0.3), is least. A column of four numbers is
// four permutations of one register each; an exponential and a division take twice as long.
constexpr float kGatePiece = 1.5f, kGateEnd = 7.49f;
alignas(DP_ALIGN) constexpr float kGate[4][16] = {
    {0.5f, 0.48289773f, 0.48405775f, 0.67131525f, 0.84656823f, 0.9390707f, 0.97803444f, 0.99258053f,
     0.0f, 0.0074194567f, 0.021947516f, 0.060929f, 0.15343653f, 0.3286877f, 0.51593947f, 0.5171023f},
    {0.37461156f, 0.45378083f, 0.47329941f, 0.24777649f, 0.094271801f, 0.031318899f, 0.0096790483f, 0.0028582783f,
     0.0f, 0.0028582856f, 0.0096698394f, 0.031318717f, 0.094275422f, 0.24777949f, 0.47329521f, 0.45378083f},
    {-1.9053017e-07f, -0.12741159f, -0.15580195f, -0.064713374f, -0.01975487f, -0.005447899f, -0.0014369726f, -0.00036997686f,
     0.0f, 0.00036997788f, 0.00143541f, 0.0054478631f, 0.019755783f, 0.06471438f, 0.15579984f, 0.12741159f},
    {-0.06515412f, 0.008202943f, 0.018144093f, 0.0058075511f, 0.0014055286f, 0.00031984347f, 7.1755079e-05f, 1.6072498e-05f,
     0.0f, 1.6072547e-05f, 7.1666938e-05f, 0.00031984123f, 0.001405605f, 0.0058076628f, 0.018143749f, 0.008202943f},
};

struct Packed {
  bool is_shared = false, is_windows = false, is_paired = false;
  bool is_depthwise = false;           // straight from the image: see Target::depthwise
  int tap_groups = 0;                  // of four neighbouring taps of a row of the kernel
  std::vector<int8_t> tap_weights;     // [quad][row of the kernel][group][channel][tap]
  std::vector<uint8_t> tap_index;      // [group][64]: bytes that four output pixels read of sixteen input pixels
  std::vector<int32_t> tap_from;       // of each four output pixels of a row: where in an input row those sixteen begin
  std::vector<uint16_t> tap_inside;    // and which of them the image has
  bool is_mixed = false;               // a stem: shared rows over quads that are mixed for each tile
  std::vector<MixedPart> parts;
  std::vector<int32_t> quad_parts;     // first part of each mixed quad, and the end
  int padded_pitch = 0, padded_rows = 0; // pixels of the padded image that they are picked from
  bool is_planewise = false;           // depthwise: a quad reads its own quad only, so that is all there is in the scratch
  std::vector<SharedRows> quads;
  std::vector<SharedEntry> shared;
  int vectors = 0, together = 0;       // vectors of a tile at most; rows of a group
  std::vector<int32_t> block_groups;   // first group of each block, and the end
  std::vector<RowGroup> groups;
  std::vector<GroupedRow> grouped;     // `together` for each group
  std::vector<Entry> entries;
  std::vector<PairEntry> pairs;        // pairs[begin + i * together / 2 + p] of a group
  std::vector<WindowStep> windows;
  std::vector<int32_t> window_lines;   // of each step: bytes from the tile's first pixel to the line it reads there
  std::vector<int32_t> block_windows;  // first step of each sixteen rows, and the end
  std::vector<float> scale;            // padded to whole blocks
  std::vector<int32_t> bias;
  std::vector<Phase> phases;
  std::vector<Segment> segments;       // of the copy's vectors, up to a stride of 2
  std::vector<int32_t> vector_segments; // first segment of each vector, and the end
  std::vector<int32_t> pixels;         // beyond that: the input's pixel for each of the copy, or -1
  bool is_halved = false;              // stride 2
  std::vector<Lanes> lanes;            // of each vector, where rows have pixels to throw away
  int pitch = 0, rows = 0, all_vectors = 0;
  int reach = 0;                       // vectors of a phase that taps read beyond an output vector's own
  size_t source_plane = 0;             // bytes between the quads of one pixel, in the input or in the scratch
  int64_t steps = 0;
};

// `vectors` times sixteen pixels of the output channels in quads first .. last; `first` begins a block of sparse rows.
struct Tile {
  const Packed* packed;
  const Epilogue* epilogue;
  const uint8_t* source;
  const uint8_t* residual; // or null
  uint8_t* out;            // both at the tile's first pixel, or with `lanes` at the image's
  const Lanes* lanes;      // or null: pixels are where they belong
  size_t out_plane;
  int first, last, vectors, pixels; // pixels: without those that only fill up the last vector
};

// One quad of a depthwise convolution: its pixels in the input and in the output.
struct Plane {
  int quad;
  const uint8_t* source;
  uint8_t* out;
};

struct Geometry;
struct LinearStep;

// What a vector target is. To add one: a file that defines it, and a line in sources.cmake.
struct Target {
  const char* name;
  bool (*runs)();
  void (*tile)(const Tile&);                                     // null: the oracle, straight from the equation
  int widest;                                                    // most vectors of a tile
  int (*together)(int vectors, bool paired);                     // rows of a group for so many vectors
  void (*to_c4)(int pixels, int channels, const uint8_t*, uint8_t*);
  void (*from_c4)(int pixels, int channels, const uint8_t*, uint8_t*);
  // Vectors begin .. end of the copy of a plane for its phases; pixels outside the image become `outside`.
  void (*copy)(const Packed&, const uint8_t* plane, uint32_t outside, int begin, int end, uint8_t* to);
  // Of one quad: sums over its first `pixels`; and sixteen pixels times `vectors` as fma(x, m, b), rounded and limited to a
  // byte. Where a target has none, those of gate.cpp do it.
  void (*sums)(int pixels, const uint8_t* quad, int32_t (&sums)[DP_QUAD]) = nullptr;
  void (*scale)(int vectors, const uint8_t* x, const float (&m)[DP_QUAD], const float (&b)[DP_QUAD], uint8_t* y) = nullptr;
  // Up to four channels of an image to one quad; y = max(x, y) of so many bytes; and the largest of `kernel` neighbouring
  // pixels from each stride-th on, up to a stride of 2, where two vectors beyond them may be read. Else those of border.cpp.
  void (*quantize)(int pixels, int channels, const float* x, float step, float zero_point, uint8_t* quad) = nullptr;
  void (*max_rows)(int bytes, const uint8_t* x, uint8_t* y) = nullptr;
  void (*max_columns)(int pixels, int kernel, int stride, const uint8_t* x, uint8_t* y) = nullptr;
  // Where there are windows: lines of `count` pixels, from up to sixteen quads `plane` bytes apart, absent ones zero; and
  // what a step costs per pixel, and a line, in multiplications of one loaded vector by a quad's weights.
  void (*lines)(int count, int stride, int quads, size_t plane, const uint8_t* from, uint8_t* to) = nullptr;
  double step_cost = 0, line_cost = 0;
  // Of tests: false where windows are to be taken wherever they are possible, whatever they cost.
  bool weighs = true;
  // Sums of two neighbouring products are kept in 16 bits: weights with which they could leave those become two entries.
  bool splits_pairs = false;
  // Adds, to the sums of sixteen rows of a linear layer, so many steps' products with the input at `from` of each.
  void (*dot)(int steps, const int32_t* from, const LinearStep*, const uint8_t* x, int32_t (&sums)[DP_PIXELS]) = nullptr;
  // A depthwise convolution without a copy of its input, for kernels up to kMostTaps high and wide and strides up to 2 across.
  void (*depthwise)(const Geometry&, const Packed&, const Epilogue&, const Plane&) = nullptr;
  // Of mixed quads: those of sixteen output pixels, whose first one reads the padded image from `from` on, `plane` bytes apart.
  void (*mix)(const Packed&, const uint8_t* from, uint8_t* to, size_t plane) = nullptr;
  // Of targets that multiply signed bytes: y = x - 128, of whole vectors. Copies that convolutions read hold that (`copy` too), also
  // where the others read the image itself, and every bias makes up for it.
  void (*lower)(size_t bytes, const uint8_t* x, uint8_t* y) = nullptr;
};
constexpr int kMostTaps = 8, kLowered = 128;

const std::vector<Target>& targets();
const Target& choose_target(const char* name); // throws std::runtime_error

struct Geometry {
  dp_conv_shape shape;
  int height_out, width_out, quads_in, quads_out, pixels_in, pixels_out; // pixels: rounded up to whole vectors

  explicit Geometry(const dp_conv_shape& shape);
  bool is_direct() const; // every output pixel reads its own input pixel only
  int windows_in() const { return (shape.channels_in + kWindow - 1) / kWindow; }
  int pixels_in_group() const { return shape.channels_in / shape.groups; }
};

std::vector<std::vector<Nonzero>> read_weights(const Geometry&, const dp_conv_weights&); // throws
// What makes up for a lowered input in the sum of one output channel.
int32_t raised(const Target&, const std::vector<Nonzero>& row);
Packed pack(const Geometry&, const std::vector<std::vector<Nonzero>>& rows, const dp_conv_weights&, const Target&);

// Of a row of a phase's copy: pixels before the image's first, and pixels of the image.
struct Columns {
  int shift; // input column of the row's first pixel; before the image where negative
  int before, inside;
};
Columns columns_of(const Geometry&, const Packed&, const Phase&);
void plan_copy(const Geometry&, Packed&);
struct Part { // of a copy: what output vectors begin .. end read of a quad
  int quad, begin, end;
};
void gather(const Geometry&, const Packed&, const Target&, const Part&, const uint8_t* x, uint8_t* to_plane);
int window_vectors(const Geometry&, const Packed&); // of a tile at most
void pack_windows(const std::vector<std::vector<Placed>>& rows, Packed&);
double windows_cost(const Geometry&, const Packed&, const Target&, size_t steps);
// Lines of one window, of rows first .. last of the copy; of a direct convolution, of so many vectors of its input, from
// vector `place` of the scratch on.
void gather_lines(const Geometry&, const Packed&, const Target&, int window, int first, int last, const uint8_t* x,
                  uint8_t* scratch, int place);
// Mixed quads; false where there are none for a convolution.
bool lay_out_mixed(const Geometry&, const Target&, Packed&);
int32_t mixed_offset(const Geometry&, const Packed&, const Nonzero&); // of the quad that meets a weight, bytes into the tile's
int mixed_byte(const Geometry&, const Nonzero&);
double mixed_cost(const Packed&);            // multiplications of a vector, for the whole image
size_t padded_bytes(const Packed&);
size_t mixed_bytes(const Packed&);           // scratch: the padded image, then a tile's quads
void pad_rows(const Geometry&, const Packed&, int first, int last, const uint8_t* x, uint8_t* padded);
void mix_tile(const Geometry&, const Packed&, const Target&, int begin, int end, const uint8_t* padded, uint8_t* to);
void run_equation(const Geometry&, const std::vector<std::vector<Nonzero>>& rows, const Packed&, const Epilogue&,
                  int row, const uint8_t* x, const uint8_t* residual, uint8_t* y);

} // namespace dp
