// Linear layers of one pixel, floats in and out: see kernels.h. A vector target multiplies; all else is done here, the same code for
// every target, written so that a compiler makes vectors of it.
#include "linear.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <stdexcept>

using namespace dp;

struct dp_linear {
  dp_linear_shape shape;
  const Target& target;
  std::vector<std::vector<Nonzero>> rows; // of the oracle only
  PackedLinear packed;

  int blocks() const { return (shape.channels_out + kLinearRows - 1) / kLinearRows; }
  size_t input_bytes() const { return size_t(round_up(shape.channels_in, DP_ALIGN)); }
};

namespace {

// Weights that are worth starting a thread for.
constexpr size_t kPieceBytes = 64 * 1024;

// Of a number this added to a float and taken off again rounds it, to even where it is halfway.
constexpr float kRounder = 12582912.0f;

void quantize(const dp_linear_shape& s, const float* x, uint8_t* q) {
  const float zero_point = float(s.zero_point), low = -zero_point, high = 255.0f - zero_point, step = s.step;
  const int count = s.channels_in;
  for (int i = 0; i < count; ++i) {
    float f = x[i] / step;
    f = f < high ? f : high; // and NaN
    f = f > low ? f : low;
    q[i] = uint8_t(int32_t((f + kRounder) - kRounder + zero_point));
  }
}

float limited(float v, float low, float high) {
  v = v > low ? v : low; // and NaN
  return v < high ? v : high;
}

using Values = float[kLinearRows];

// 1 / (1 + exp(-v)): the exponent's whole part goes where a float has its own, the rest through a polynomial (Taylor's, to the
// sixth power: 2e-7 of it at half of ln 2).
void sigmoid(const Values& v, Values& gate) {
  int32_t bits[kLinearRows];
  Values z; // in a loop of its own, or the compiler would branch to constants at the limits
  for (int i = 0; i < kLinearRows; ++i) z[i] = limited(-v[i], -87.0f, 87.0f);
  for (int i = 0; i < kLinearRows; ++i) {
    const float whole = (z[i] * 1.44269504f + kRounder) - kRounder;
    const float r = (z[i] - whole * 0.693359375f) - whole * -2.12194440e-4f;
    gate[i] = 1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    bits[i] = (int32_t(whole) + 127) * (1 << 23);
  }
  Values power;
  std::memcpy(power, bits, sizeof power);
  for (int i = 0; i < kLinearRows; ++i) gate[i] = 1.0f / (1.0f + gate[i] * power[i]);
}

void activate(const dp_linear_shape& s, Values& v) {
  Values gate;
  const bool soft = s.activation == DP_SIGMOID || s.activation == DP_SWISH, hard = s.activation == DP_HARD_SIGMOID || s.activation == DP_HARD_SWISH;
  if (s.activation == DP_CLIP)
    for (float& value : v) value = limited(value, s.low, s.high);
  if (soft) sigmoid(v, gate);
  if (hard)
    for (int i = 0; i < kLinearRows; ++i) gate[i] = limited(v[i] * s.slope + 0.5f, 0.0f, 1.0f);
  if (s.activation == DP_SIGMOID || s.activation == DP_HARD_SIGMOID) std::copy_n(gate, kLinearRows, v);
  if (s.activation == DP_SWISH || s.activation == DP_HARD_SWISH)
    for (int i = 0; i < kLinearRows; ++i) v[i] *= gate[i];
}

struct LinearRun {
  const dp_linear& linear;
  int32_t batch;
  const uint8_t* q;
  float* y;
  int pieces;
};

// Sums of sixteen rows, of one image.
void sum_block(const dp_linear& linear, int block, const uint8_t* q, int32_t (&sums)[kLinearRows]) {
  const PackedLinear& packed = linear.packed;
  const int first = block * kLinearRows;
  std::copy_n(packed.bias.data() + first, kLinearRows, sums);
  if (linear.target.dot) {
    const int32_t begin = packed.blocks[size_t(block)], end = packed.blocks[size_t(block) + 1];
    return linear.target.dot(end - begin, packed.from.data() + begin, packed.steps.data() + begin, q, sums);
  }
  for (int row = first; row < std::min(linear.shape.channels_out, first + kLinearRows); ++row)
    for (const Nonzero& w : linear.rows[size_t(row)]) sums[row - first] += w.value * int32_t(q[w.channel]);
}

// A share of the rows, of all images while its weights are near.
void blocks_one(void* context, int32_t piece) {
  const LinearRun& run = *static_cast<LinearRun*>(context);
  const dp_linear& linear = run.linear;
  const int outputs = linear.shape.channels_out, last = begin_of(linear.blocks(), piece + 1, run.pieces);
  for (int block = begin_of(linear.blocks(), piece, run.pieces); block < last; ++block)
    for (int32_t n = 0; n < run.batch; ++n) {
      int32_t sums[kLinearRows];
      sum_block(linear, block, run.q + size_t(n) * linear.input_bytes(), sums);
      const int first = block * kLinearRows;
      const float* scale = linear.packed.scale.data() + first;
      Values v;
      for (int i = 0; i < kLinearRows; ++i) v[i] = float(sums[i]) * scale[i];
      activate(linear.shape, v);
      std::copy_n(v, std::min(kLinearRows, outputs - first), run.y + size_t(n) * outputs + first);
    }
}

void check(const dp_linear_shape& s) {
  if (s.channels_in <= 0 || s.channels_out <= 0) throw std::runtime_error("sizes must be positive");
  if (!std::isfinite(s.step) || s.step <= 0 || s.zero_point < 0 || s.zero_point > 255)
    throw std::runtime_error("needs a positive step and a zero point in 0..255");
  if (s.activation < DP_NONE || s.activation > DP_SWISH) throw std::runtime_error("there is no such activation");
  if (std::isnan(s.low) || std::isnan(s.high) || s.low > s.high || !std::isfinite(s.slope))
    throw std::runtime_error("limits and slope must be numbers, and the lower limit not above the other");
}

PackedLinear pack_linear(const dp_linear_shape& s, const std::vector<std::vector<Nonzero>>& rows, const dp_conv_weights& w,
                         const Target& target) {
  PackedLinear packed;
  const int blocks = (s.channels_out + kLinearRows - 1) / kLinearRows;
  packed.scale.assign(size_t(blocks) * kLinearRows, 0.0f);
  packed.bias.assign(packed.scale.size(), 0);
  std::copy_n(w.scale, rows.size(), packed.scale.begin());
  for (size_t row = 0; row < rows.size(); ++row) packed.bias[row] = w.bias[row] + raised(target, rows[row]);
  for (int block = 0; block < blocks; ++block) {
    packed.blocks.push_back(int32_t(packed.steps.size()));
    std::map<int32_t, LinearStep> found;
    for (int i = 0; i < kLinearRows && size_t(block * kLinearRows + i) < rows.size(); ++i)
      for (const Nonzero& one : rows[size_t(block * kLinearRows + i)])
        found[one.channel / DP_QUAD * DP_QUAD].weights[i][one.channel % DP_QUAD] = int8_t(one.value);
    for (const auto& [from, step] : found) {
      packed.from.push_back(from);
      packed.steps.push_back(step);
    }
  }
  packed.blocks.push_back(int32_t(packed.steps.size()));
  return packed;
}

} // namespace

extern "C" {

dp_linear* dp_linear_create(const dp_linear_shape* shape, const dp_conv_weights* weights, const char* target, char* error,
                            size_t error_bytes) {
  try {
    check(*shape);
    dp_conv_shape as_conv{};
    as_conv.channels_in = shape->channels_in, as_conv.channels_out = shape->channels_out;
    as_conv.groups = as_conv.height = as_conv.width = 1;
    as_conv.kernel_y = as_conv.kernel_x = as_conv.stride_y = as_conv.stride_x = as_conv.dilation_y = as_conv.dilation_x = 1;
    const Target& chosen = choose_target(target);
    auto rows = read_weights(Geometry(as_conv), *weights);
    PackedLinear packed = pack_linear(*shape, rows, *weights, chosen);
    if (chosen.dot) rows.clear();
    return new dp_linear{*shape, chosen, std::move(rows), std::move(packed)};
  } catch (const std::exception& failure) {
    if (error && error_bytes) std::snprintf(error, error_bytes, "%s", failure.what());
    return nullptr;
  }
}

void dp_linear_destroy(dp_linear* linear) { delete linear; }

size_t dp_linear_scratch_bytes(const dp_linear* linear, int32_t batch) { return size_t(batch) * linear->input_bytes(); }

void dp_linear_run(const dp_linear* linear, int32_t batch, const float* x, float* y, void* scratch, int32_t threads,
                   dp_parallel parallel, void* pool) {
  uint8_t* q = static_cast<uint8_t*>(scratch);
  for (int32_t n = 0; n < batch; ++n, x += linear->shape.channels_in)
    quantize(linear->shape, x, q + size_t(n) * linear->input_bytes());
  const size_t worth = std::max<size_t>(1, linear->packed.steps.size() * sizeof(LinearStep) / kPieceBytes);
  LinearRun run{*linear, batch, q, y, 1};
  run.pieces = int(std::min({size_t(std::max(1, threads)), worth, size_t(linear->blocks())}));
  if (parallel && run.pieces > 1) return parallel(pool, run.pieces, blocks_one, &run);
  for (int32_t piece = 0; piece < run.pieces; ++piece) blocks_one(&run, piece);
}

const char* dp_linear_target(const dp_linear* linear) { return linear->target.name; }
}
