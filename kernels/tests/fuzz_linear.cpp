// Random linear layers of one pixel on every target this CPU runs: each equals the oracle bit for bit, and the oracle float64
// closely. Every buffer lies between pages that may not be touched.
//
//   fuzz_linear [first case] [number of cases]      prints how many cases ran, or the case that failed, and returns 1
#include <cmath>
#include <cstring>
#include <limits>

#include "cases.h"

namespace {

struct Layer {
  dp_linear_shape shape{};
  int batch = 1, threads = 1;
  bool at_front = false, is_parallel = false;
  std::vector<int8_t> dense; // [out][in]
  std::vector<uint8_t> mask;
  std::vector<int8_t> values;
  std::vector<float> scale;
  std::vector<int32_t> bias;

  explicit Layer(Random& random) {
    dp_linear_shape& s = shape;
    s.channels_in = int(draw(random, 1, chance(random, 0.1) ? 900 : 90));
    s.channels_out = int(draw(random, 1, chance(random, 0.1) ? 400 : 70));
    s.zero_point = int(draw(random, 0, 255));
    s.activation = int(draw(random, DP_NONE, DP_SWISH));
    s.step = float(draw(random, 1, 1000)) / 5000;
    s.low = float(draw(random, -100, 0)) / 50;
    s.high = chance(random, 0.5) ? std::numeric_limits<float>::infinity() : s.low + float(draw(random, 0, 200)) / 50;
    s.slope = float(draw(random, 1, 100)) / 200;
    batch = int(draw(random, 1, 3));
    threads = int(draw(random, 1, 4));
    is_parallel = chance(random, 0.3);
    at_front = chance(random, 0.5);
    const double density = chance(random, 0.3) ? 1 : double(draw(random, 0, 100)) / 100;
    const size_t count = size_t(s.channels_in) * s.channels_out;
    dense.assign(count, 0);
    mask.assign((count + 7) / 8, 0);
    for (size_t i = 0; i < count; ++i) {
      const int value = chance(random, 0.05) ? (chance(random, 0.5) ? -128 : 127) : int(draw(random, -127, 127));
      if (!value || !chance(random, density)) continue;
      dense[i] = int8_t(value), mask[i / 8] |= uint8_t(1 << i % 8);
      values.push_back(int8_t(value));
    }
    for (int row = 0; row < s.channels_out; ++row) {
      scale.push_back(float(draw(random, 1, 1000)) / 1e6f);
      bias.push_back(int32_t(draw(random, -30000, 30000)));
    }
  }

  dp_conv_weights weights() const { return {mask.data(), mask.size(), values.data(), values.size(), scale.data(), bias.data()}; }
};

std::string describe(uint64_t number, const Layer& c, const std::string& target) {
  return "case " + std::to_string(number) + " on " + target + ": " + std::to_string(c.shape.channels_in) + " to " +
         std::to_string(c.shape.channels_out) + " channels, batch " + std::to_string(c.batch) + ", activation " +
         std::to_string(c.shape.activation) + ": ";
}

struct Numbers {
  Numbers(size_t count, bool at_front) : memory(count * sizeof(float), at_front), data(reinterpret_cast<float*>(memory.data)) {}
  Guarded memory;
  float* data;
};

double activated(const dp_linear_shape& s, double v) {
  const double h = std::min(std::max(v * double(s.slope) + 0.5, 0.0), 1.0), g = 1 / (1 + std::exp(-v));
  switch (s.activation) {
    case DP_CLIP: return std::min(std::max(v, double(s.low)), double(s.high));
    case DP_HARD_SIGMOID: return h;
    case DP_HARD_SWISH: return v * h;
    case DP_SIGMOID: return g;
    case DP_SWISH: return v * g;
    default: return v;
  }
}

void check_float64(uint64_t number, const Layer& c, const float* x, const float* y) {
  const dp_linear_shape& s = c.shape;
  for (int n = 0; n < c.batch; ++n)
    for (int row = 0; row < s.channels_out; ++row) {
      int64_t acc = c.bias[size_t(row)];
      for (int i = 0; i < s.channels_in; ++i) {
        const float f = std::nearbyint(x[n * s.channels_in + i] / s.step) + float(s.zero_point);
        acc += int64_t(f < 255 ? f > 0 ? f : 0 : 255) * c.dense[size_t(row) * s.channels_in + i];
      }
      const double v = double(acc) * double(c.scale[size_t(row)]), wanted = activated(s, v), found = y[n * s.channels_out + row];
      if (!(std::abs(found - wanted) <= 1e-6 * std::max(1.0, std::abs(v)))) fail(describe(number, c, "scalar") + "a sum is wrong");
    }
}

void check_layer(uint64_t number, const Layer& c, Random& random) {
  const size_t in = size_t(c.batch) * c.shape.channels_in, out = size_t(c.batch) * c.shape.channels_out;
  Numbers x(in, c.at_front);
  for (size_t i = 0; i < in; ++i)
    x.data[i] = (float(draw(random, -10, 265)) - float(c.shape.zero_point) + float(draw(random, 0, 2)) / 2) * c.shape.step;
  const float extremes[] = {1e30f, -1e30f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  if (chance(random, 0.2)) x.data[draw(random, 0, int64_t(in) - 1)] = extremes[draw(random, 0, 3)];
  x.memory.read_only();
  const dp_conv_weights weights = c.weights();
  std::vector<float> oracle(out);
  for (const std::string& target : targets()) {
    char error[200];
    dp_linear* linear = dp_linear_create(&c.shape, &weights, target.c_str(), error, sizeof error);
    if (!linear) fail(describe(number, c, target) + error);
    if (dp_linear_target(linear) != target) fail(describe(number, c, target) + "another target runs it");
    Guarded scratch(dp_linear_scratch_bytes(linear, c.batch), false);
    Numbers y(out, c.at_front);
    dp_linear_run(linear, c.batch, x.data, y.data, scratch.data, c.threads, c.is_parallel ? on_threads : nullptr, nullptr);
    dp_linear_destroy(linear);
    if (target == "scalar") {
      std::memcpy(oracle.data(), y.data, out * sizeof(float));
      check_float64(number, c, x.data, y.data);
    }
    if (std::memcmp(oracle.data(), y.data, out * sizeof(float))) fail(describe(number, c, target) + "a sum is not the oracle's");
  }
}

void check_refusals() {
  Random random(7);
  Layer layer(random);
  dp_conv_weights weights = layer.weights();
  const auto refuses = [&](const dp_linear_shape& shape) {
    char error[200] = "";
    if (dp_linear_create(&shape, &weights, nullptr, error, sizeof error) || !*error) fail("a layer that is not sound was taken");
  };
  for (float step : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    dp_linear_shape shape = layer.shape;
    shape.step = step;
    refuses(shape);
  }
  for (int32_t dp_linear_shape::*field : {&dp_linear_shape::channels_in, &dp_linear_shape::channels_out, &dp_linear_shape::zero_point,
                                          &dp_linear_shape::activation})
    for (int32_t value : {-1, 1 << 20}) {
      dp_linear_shape shape = layer.shape;
      shape.*field = value;
      refuses(shape);
    }
  weights.mask_bytes += 1;
  refuses(layer.shape);
}

} // namespace

int main(int count, char** arguments) {
  check_refusals();
  return run_cases(count, arguments, 2000, [](uint64_t number) {
    Random random(number);
    const Layer layer(random);
    check_layer(number, layer, random);
  });
}
