// Every target against the oracle, bit for bit, on random convolutions in guarded memory.
//   fuzz SEED CASES [FIRST]      runs cases FIRST .. FIRST + CASES - 1 of a seed; each has its own random numbers
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "deploypruner/kernels.h"
#include "guarded.h"
#ifdef DP_TRAP_VBMI
#include "trap.h"
#endif

namespace {

struct Random {
  std::mt19937_64 engine;

  int in(int low, int high) { return low + int(engine() % uint64_t(high - low + 1)); }
  bool chance(double p) { return double(engine() >> 11) * 0x1p-53 < p; }
  float real() { return float(double(engine() >> 11) * 0x1p-53); }
  void fill(uint8_t* bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) bytes[i] = uint8_t(engine());
  }
};

size_t whole(size_t value, size_t step) { return (value + step - 1) / step * step; }

enum class Pattern { dense, unstructured, quads, windows, empty };

struct Case {
  dp_conv_shape shape{};
  int batch = 1, threads = 1;
  bool own_threads = false, at_end = true;
  Pattern pattern = Pattern::dense;
  double density = 1;

  size_t in_group() const { return size_t(shape.channels_in / shape.groups); }
  size_t taps() const { return size_t(shape.kernel_y) * shape.kernel_x; }
  size_t pixels_in() const { return size_t(shape.height) * shape.width; }
  size_t pixels_out() const { return size_t(dp_conv_height_out(&shape)) * dp_conv_width_out(&shape); }
  size_t bytes_in() const { return batch * whole(size_t(shape.channels_in), 4) * whole(pixels_in(), DP_PIXELS); }
  size_t bytes_out() const { return batch * whole(size_t(shape.channels_out), 4) * whole(pixels_out(), DP_PIXELS); }
};

int channels(Random& random) {
  if (random.chance(0.3)) return random.in(1, 5) * 64 + (random.chance(0.5) ? 0 : random.in(-2, 2));
  return random.in(1, random.chance(0.5) ? 20 : 150);
}

void choose_channels(Random& random, dp_conv_shape& s) {
  s.channels_in = channels(random), s.channels_out = channels(random), s.groups = 1;
  if (random.chance(0.15)) s.groups = s.channels_in = s.channels_out;
  else if (random.chance(0.15)) {
    s.groups = random.in(2, 5);
    s.channels_in = s.groups * random.in(1, 40), s.channels_out = s.groups * random.in(1, 20);
  }
}

void choose_image(Random& random, dp_conv_shape& s) {
  const int most = s.channels_in > 100 || s.channels_out > 100 ? 9 : 20;
  s.height = random.in(1, most), s.width = random.in(1, most);
  s.kernel_y = s.kernel_x = s.stride_y = s.stride_x = s.dilation_y = s.dilation_x = 1;
  if (random.chance(0.4)) return;
  if (random.chance(0.3)) { // what networks have most
    s.kernel_y = s.kernel_x = 3;
    s.pad_top = s.pad_left = s.pad_bottom = s.pad_right = 1;
    s.stride_y = s.stride_x = random.in(1, 2);
    return;
  }
  s.kernel_y = random.in(1, 4), s.kernel_x = random.in(1, 4), s.stride_y = random.in(1, 3), s.stride_x = random.in(1, 3);
  s.dilation_y = random.in(1, 3), s.dilation_x = random.in(1, 3);
  for (int32_t* pad : {&s.pad_top, &s.pad_left, &s.pad_bottom, &s.pad_right}) *pad = random.in(0, 4);
}

Case choose(Random& random) {
  Case c;
  dp_conv_shape& s = c.shape;
  choose_channels(random, s);
  choose_image(random, s);
  s.input_zero_point = random.in(0, 255), s.output_zero_point = random.in(0, 255);
  s.low = random.chance(0.5) ? 0 : random.in(0, 120), s.high = random.chance(0.5) ? 255 : random.in(120, 255);
  s.has_residual = random.chance(0.4), s.residual_zero_point = random.in(0, 255), s.residual_scale = random.real() * 2;
  s.hard_swish_slope = random.chance(0.3) ? random.real() / 10 : 0;
  c.batch = random.chance(0.2) ? random.in(2, 3) : 1;
  c.threads = random.chance(0.5) ? 1 : random.in(2, 9);
  c.own_threads = random.chance(0.1), c.at_end = random.chance(0.7);
  c.pattern = random.chance(0.03) ? Pattern::empty : Pattern(random.in(0, 3));
  const double densities[] = {0.02, 0.1, 0.2, 0.5};
  c.density = densities[random.in(0, 3)];
  return c;
}

// Weights in the equation's order, zeros of the case's pattern.
std::vector<int8_t> choose_weights(Random& random, const Case& c) {
  const size_t rows = size_t(c.shape.channels_out), columns = c.in_group(), taps = c.taps();
  std::vector<int8_t> weights(rows * columns * taps);
  std::vector<bool> kept;
  for (size_t row = 0; row < rows; ++row)
    for (size_t tap = 0; tap < taps; ++tap)
      for (size_t column = 0; column < columns; ++column) {
        bool keep = c.pattern == Pattern::dense || random.chance(c.density);
        if (c.pattern == Pattern::quads && column % 4) keep = kept.back();
        // nm64: a window of 64 is empty or has the same few weights in each row.
        if (c.pattern == Pattern::windows) keep = column % 64 < 4 * size_t(1 + tap % 2) && (row / 16 + column / 64 + tap) % 3;
        kept.push_back(keep && c.pattern != Pattern::empty);
        const int value = random.chance(0.05) ? (random.chance(0.5) ? -128 : 127) : random.in(-128, 127);
        const size_t moved = c.pattern == Pattern::windows ? (column * 13 + row * 7) % columns : column;
        if (kept.back()) weights[(row * columns + moved) * taps + tap] = int8_t(value);
      }
  return weights;
}

struct Inputs {
  Guarded mask, values, scale, bias, x, residual;
  dp_conv_weights weights{};

  Inputs(Random& random, const Case& c, const std::vector<int8_t>& dense, size_t count)
      : mask((dense.size() + 7) / 8, c.at_end, true), values(count, c.at_end, true),
        scale(size_t(c.shape.channels_out) * 4, c.at_end, true), bias(size_t(c.shape.channels_out) * 4, c.at_end, true),
        x(c.bytes_in(), c.at_end), residual(c.shape.has_residual ? c.bytes_out() : 0, c.at_end) {
    weights = {mask.data(), (dense.size() + 7) / 8, values.as<int8_t>(), count, scale.as<float>(), bias.as<int32_t>()};
    size_t next = 0;
    for (size_t i = 0; i < dense.size(); ++i)
      if (dense[i]) {
        mask.data()[i / 8] = uint8_t(mask.data()[i / 8] | 1 << i % 8);
        values.as<int8_t>()[next++] = dense[i];
      }
    const size_t columns = dense.size() / size_t(c.shape.channels_out);
    for (int row = 0; row < c.shape.channels_out; ++row) {
      double squares = 1;
      int sum = 0;
      for (size_t i = 0; i < columns; ++i) {
        const int weight = dense[size_t(row) * columns + i];
        squares += weight * weight, sum += weight;
      }
      scale.as<float>()[row] = float(random.real() * 1.5 / std::sqrt(squares)); // outputs of all sizes, few saturated
      bias.as<int32_t>()[row] = random.in(-2000, 2000) - c.shape.input_zero_point * sum;
    }
    random.fill(x.data(), c.bytes_in());
    if (c.shape.has_residual) random.fill(residual.data(), c.bytes_out());
  }
};

void on_threads(void*, int32_t count, void (*body)(void*, int32_t), void* context) {
  std::vector<std::thread> threads;
  for (int32_t first = 0; first < 3; ++first)
    threads.emplace_back([=] {
      for (int32_t i = first; i < count; i += 3) body(context, i);
    });
  for (std::thread& thread : threads) thread.join();
}

void backwards(void*, int32_t count, void (*body)(void*, int32_t), void* context) {
  while (count-- > 0) body(context, count);
}

[[noreturn]] void fail(const std::string& what) {
  std::printf("%s\n", what.c_str());
  std::exit(1);
}

// The output, pixel by pixel.
std::vector<uint8_t> run(const Case& c, const Inputs& inputs, const char* target, int garbage) {
  char error[256];
  const std::unique_ptr<dp_conv, void (*)(dp_conv*)> conv(
      dp_conv_create(&c.shape, &inputs.weights, target, error, sizeof error), dp_conv_destroy);
  if (!conv) fail(std::string(target) + " refused: " + error);
  const size_t scratch_bytes = dp_conv_scratch_bytes(conv.get());
  Guarded y(c.bytes_out(), c.at_end), scratch(scratch_bytes, c.at_end);
  std::fill_n(scratch.data(), scratch_bytes, uint8_t(garbage));
  dp_conv_run(conv.get(), c.batch, inputs.x.data(), c.shape.has_residual ? inputs.residual.data() : nullptr, y.data(),
              scratch.data(), c.threads, c.threads == 1 ? nullptr : c.own_threads ? on_threads : backwards, nullptr);
  std::vector<uint8_t> out(c.batch * c.pixels_out() * size_t(c.shape.channels_out));
  dp_from_c4("scalar", c.batch, int32_t(c.pixels_out()), c.shape.channels_out, y.data(), out.data());
  return out;
}

// Conversions there and back, in memory guarded to the byte.
void check_layout(Random& random, const Case& c, const char* target) {
  const int pixels = int(c.pixels_in()), count = c.shape.channels_in;
  const size_t plain = c.batch * size_t(pixels) * size_t(count);
  Guarded nhwc(plain, c.at_end, true), back(plain, c.at_end, true), c4(c.bytes_in(), c.at_end), same(c.bytes_in(), c.at_end);
  random.fill(nhwc.data(), plain);
  if (dp_to_c4(target, c.batch, pixels, count, nhwc.data(), c4.data()) ||
      dp_to_c4("scalar", c.batch, pixels, count, nhwc.data(), same.data()) ||
      dp_from_c4(target, c.batch, pixels, count, c4.data(), back.data()))
    fail(std::string(target) + " refused a conversion");
  if (!std::equal(c4.data(), c4.data() + c.bytes_in(), same.data())) fail(std::string(target) + ": to_c4 differs");
  if (!std::equal(nhwc.data(), nhwc.data() + plain, back.data())) fail(std::string(target) + ": from_c4 differs");
}

std::string describe(const Case& c) {
  const dp_conv_shape& s = c.shape;
  char text[400];
  std::snprintf(text, sizeof text,
                "%d->%d groups %d, %dx%d, kernel %dx%d stride %dx%d dilation %dx%d pads %d %d %d %d, residual %d, swish %g, "
                "pattern %d density %g, batch %d, threads %d",
                s.channels_in, s.channels_out, s.groups, s.height, s.width, s.kernel_y, s.kernel_x, s.stride_y, s.stride_x,
                s.dilation_y, s.dilation_x, s.pad_top, s.pad_left, s.pad_bottom, s.pad_right, s.has_residual,
                double(s.hard_swish_slope), int(c.pattern), c.density, c.batch, c.threads);
  return text;
}

bool run_case(uint64_t seed, uint64_t number, const std::vector<const char*>& targets) {
  Random random{std::mt19937_64(seed * 0x9e3779b97f4a7c15ull + number)};
  const Case c = choose(random);
  if (!c.pixels_out()) return false;
  const std::vector<int8_t> dense = choose_weights(random, c);
  const size_t count = dense.size() - size_t(std::count(dense.begin(), dense.end(), int8_t(0)));
  const Inputs inputs(random, c, dense, count);
  const std::vector<uint8_t> expected = run(c, inputs, "scalar", 0);
  for (const char* target : targets) {
    check_layout(random, c, target);
    const std::vector<uint8_t> found = run(c, inputs, target, random.in(0, 255));
    if (found == expected) continue;
    const auto at = size_t(std::mismatch(found.begin(), found.end(), expected.begin()).first - found.begin());
    const size_t width = size_t(c.shape.channels_out);
    fail("case " + std::to_string(number) + ": " + target + " has " + std::to_string(found[at]) + " and the oracle " +
         std::to_string(expected[at]) + " in pixel " + std::to_string(at / width) + ", channel " +
         std::to_string(at % width) + "; " + describe(c));
  }
  return true;
}

} // namespace

int main(int count, char** arguments) {
  if (count < 3) fail("usage: fuzz SEED CASES [FIRST]");
#ifdef DP_TRAP_VBMI
  trap::install();
#endif
  std::vector<const char*> targets;
  for (int32_t i = 0; dp_target_name(i); ++i)
    if (dp_target_runs(i) && std::string(dp_target_name(i)) != "scalar") targets.push_back(dp_target_name(i));
  const uint64_t seed = std::strtoull(arguments[1], nullptr, 10), cases = std::strtoull(arguments[2], nullptr, 10);
  const uint64_t first = count > 3 ? std::strtoull(arguments[3], nullptr, 10) : 0;
  uint64_t ran = 0;
  for (uint64_t number = first; number < first + cases; ++number) ran += run_case(seed, number, targets);
  std::printf("%llu convolutions equal to the oracle on:", static_cast<unsigned long long>(ran));
  for (const char* target : targets) std::printf(" %s", target);
  std::printf("\n");
}
