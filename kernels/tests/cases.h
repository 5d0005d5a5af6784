// What the tests of the kernels draw at random: convolutions with their weights, and memory with guards around it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "deploypruner/kernels.h"

namespace {

using Random = std::mt19937_64;

int64_t draw(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}
bool chance(Random& random, double share) { return std::bernoulli_distribution(share)(random); }

[[noreturn]] void fail(const std::string& what) {
  std::printf("%s\n", what.c_str());
  std::exit(1);
}

// Memory that ends (or begins) where a page begins (or ends) that must not be touched.
class Guarded {
 public:
  Guarded(size_t bytes, bool at_front) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    inner_ = std::max<size_t>(1, (bytes + page - 1) / page) * page;
    whole_ = inner_ + 2 * page;
    base_ = static_cast<uint8_t*>(mmap(nullptr, whole_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) fail("no memory");
    start_ = base_ + page;
    if (mprotect(start_, inner_, PROT_READ | PROT_WRITE)) fail("no memory");
    data = start_ + (at_front ? 0 : inner_ - bytes);
  }
  ~Guarded() { munmap(base_, whole_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  void read_only() { mprotect(start_, inner_, PROT_READ); }

  uint8_t* data;

 private:
  uint8_t *base_, *start_;
  size_t whole_, inner_;
};

// Pieces of work on three threads, in an order of their own.
inline void on_threads(void*, int32_t count, void (*body)(void*, int32_t), void* context) {
  std::atomic<int32_t> next{0};
  const auto work = [&] {
    for (int32_t i; (i = next++) < count;) body(context, count - 1 - i);
  };
  std::thread second(work), third(work);
  work();
  second.join();
  third.join();
}

struct Case {
  dp_conv_shape shape{};
  int batch = 1, threads = 1;
  bool is_parallel = false;
  std::vector<int8_t> dense; // [out][in / groups][ky][kx]
  std::vector<float> scale;
  std::vector<int32_t> bias;

  int per_group() const { return shape.channels_in / shape.groups; }
  int taps() const { return shape.kernel_y * shape.kernel_x; }
  int pixels_in() const { return shape.height * shape.width; }
  int pixels_out() const { return dp_conv_height_out(&shape) * dp_conv_width_out(&shape); }
};

int whole(int value, int step) { return (value + step - 1) / step * step; }
inline size_t c4_bytes(int channels, int pixels) { return size_t(whole(channels, DP_QUAD)) * size_t(whole(pixels, DP_PIXELS)); }
inline size_t at(int channel, int pixel, int pixels) {
  return (size_t(channel / DP_QUAD) * size_t(whole(pixels, DP_PIXELS)) + size_t(pixel)) * DP_QUAD + size_t(channel % DP_QUAD);
}

void draw_shape(Random& random, dp_conv_shape& s) {
  const int kind = int(draw(random, 0, 5));
  s.groups = 1;
  s.channels_in = int(draw(random, 1, chance(random, 0.3) ? 200 : 40));
  s.channels_out = int(draw(random, 1, chance(random, 0.3) ? 80 : 24));
  if (kind == 1) s.groups = s.channels_in = s.channels_out = int(draw(random, 1, 40));
  if (kind == 2) {
    s.groups = int(draw(random, 1, 6));
    s.channels_in = s.groups * int(draw(random, 1, 12));
    s.channels_out = s.groups * int(draw(random, 1, 12));
  }
  s.height = int(draw(random, 1, 20));
  s.width = int(draw(random, 1, chance(random, 0.1) ? 130 : 20));
  s.kernel_y = s.kernel_x = s.stride_y = s.stride_x = s.dilation_y = s.dilation_x = 1;
  if (kind >= 3) return; // 1x1 without padding: no copy of the input is made
  const bool is_stem = kind == 0 && chance(random, 0.4);
  if (is_stem) s.channels_in = int(draw(random, 1, 3)), s.width = int(draw(random, 1, 90));
  const int largest = is_stem || kind == 1 ? 7 : 5;
  s.kernel_y = int(draw(random, 1, largest)), s.kernel_x = chance(random, 0.5) ? s.kernel_y : int(draw(random, 1, largest));
  s.stride_y = int(draw(random, 1, 3)), s.stride_x = int(draw(random, 1, 3));
  s.dilation_y = int(draw(random, 1, 3)), s.dilation_x = int(draw(random, 1, 3));
  for (int32_t* pad : {&s.pad_top, &s.pad_left, &s.pad_bottom, &s.pad_right}) *pad = int(draw(random, 0, 4));
}

// Weights of one of the patterns; rows or everything may be empty.
void draw_weights(Random& random, Case& c) {
  const dp_conv_shape& s = c.shape;
  const int columns = c.per_group(), taps = c.taps(), pattern = int(draw(random, 0, 5));
  const double densities[] = {0, 0.02, 0.1, 0.3, 0.6, 1};
  const double density = densities[draw(random, 0, 5)];
  c.dense.assign(size_t(s.channels_out) * columns * taps, 0);
  const auto put = [&](int row, int column, int tap) {
    const int extreme = chance(random, 0.05) ? (chance(random, 0.5) ? -128 : 127) : int(draw(random, -127, 127));
    c.dense[(size_t(row) * columns + column) * taps + tap] = int8_t(extreme);
  };
  for (int tap = 0; tap < taps; ++tap)
    for (int row = 0; row < s.channels_out; ++row) {
      if (pattern == 1 || pattern >= 4) { // 1x4, or 4x4 and 2x4: the same blocks in four or two rows
        Random shared(uint64_t(row / (pattern == 4 ? 4 : 2) * 131 + tap));
        for (int quad = 0; quad < columns; quad += DP_QUAD)
          if (chance(pattern == 1 ? random : shared, density))
            for (int i = quad; i < std::min(columns, quad + DP_QUAD); ++i) put(row, i, tap);
      } else if (pattern == 2) { // nm64: as many steps of four in each window as its block of 16 rows has
        Random block(uint64_t(row / 16 * 131 + tap));
        for (int window = 0; window < columns; window += 64) {
          const int width = std::min(64, columns - window);
          const auto steps = draw(block, 0, std::max<int64_t>(0, std::llround(2 * density * width / 4)));
          for (int64_t i = 0; i < 4 * steps; ++i) put(row, window + int(draw(random, 0, width - 1)), tap);
        }
      } else { // unstructured, or a few rows only
        if (pattern == 3 && chance(random, 0.5)) continue;
        for (int column = 0; column < columns; ++column)
          if (chance(random, density)) put(row, column, tap);
      }
    }
}

inline Case draw_case(uint64_t number) {
  Random random(number);
  Case c;
  dp_conv_shape& s = c.shape;
  do {
    s = {};
    draw_shape(random, s);
  } while (c.pixels_out() < 1 || int64_t(s.channels_out) * c.per_group() * c.taps() * c.pixels_out() > 2000000);
  s.input_zero_point = int(draw(random, 0, 255)), s.output_zero_point = int(draw(random, 0, 255));
  s.low = int(draw(random, 0, 100)), s.high = chance(random, 0.5) ? 255 : int(draw(random, s.low, 255));
  if (chance(random, 0.4)) {
    s.has_residual = 1;
    s.residual_zero_point = int(draw(random, 0, 255));
    s.residual_scale = float(draw(random, 1, 3000)) / 1000;
    s.sum_low = chance(random, 0.5) ? -FLT_MAX : float(draw(random, -200, 50));
    s.sum_high = chance(random, 0.5) ? FLT_MAX : float(draw(random, 50, 300));
  }
  if (chance(random, 0.25)) s.hard_swish_slope = float(draw(random, 1, 60)) / 1000;
  else if (chance(random, 0.25)) s.swish_step = float(draw(random, 1, 200)) / 1000;
  c.batch = chance(random, 0.2) ? int(draw(random, 2, 3)) : 1;
  c.threads = int(draw(random, 1, 8));
  c.is_parallel = chance(random, 0.2);
  draw_weights(random, c);
  const size_t columns = size_t(c.per_group()) * c.taps();
  for (int row = 0; row < s.channels_out; ++row) {
    int64_t sum = 0, squares = 1;
    for (size_t i = 0; i < columns; ++i) {
      const int64_t w = c.dense[size_t(row) * columns + i];
      sum += w, squares += w * w;
    }
    c.bias.push_back(int32_t(draw(random, -20000, 20000) - s.input_zero_point * sum));
    c.scale.push_back(float(double(draw(random, 1, 200)) / (std::sqrt(double(squares)) * 100)));
  }
  return c;
}

inline void fill(Random& random, uint8_t* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) data[i] = uint8_t(random());
}

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (int i = 0; const char* name = dp_target_name(i); ++i)
    if (dp_target_runs(i)) names.push_back(name);
  return names;
}

inline std::string describe(uint64_t number, const Case& c, const std::string& target) {
  const dp_conv_shape& s = c.shape;
  char text[512];
  std::snprintf(text, sizeof text,
                "case %llu on %s: %d -> %d channels, %d groups, %d x %d, kernel %d x %d, stride %d x %d, dilation %d x %d, "
                "pads %d %d %d %d, zero points %d %d, limits %d %d, residual %d (%d, %g) to %g .. %g, slope %g, step %g, batch %d, threads %d",
                static_cast<unsigned long long>(number), target.c_str(), s.channels_in, s.channels_out, s.groups, s.height,
                s.width, s.kernel_y, s.kernel_x, s.stride_y, s.stride_x, s.dilation_y, s.dilation_x, s.pad_top, s.pad_left,
                s.pad_bottom, s.pad_right, s.input_zero_point, s.output_zero_point, s.low, s.high, s.has_residual,
                s.residual_zero_point, double(s.residual_scale), double(s.sum_low), double(s.sum_high),
                double(s.hard_swish_slope), double(s.swish_step), c.batch, c.threads);
  return text;
}

// Arguments: number of the first case, and how many.
template <class Check>
int run_cases(int count, char** arguments, uint64_t usual, Check check) {
  const uint64_t first = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
  const uint64_t cases = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : usual;
  for (uint64_t number = first; number < first + cases; ++number) check(number);
  std::string names;
  for (const std::string& name : targets()) names += " " + name;
  std::printf("%llu cases on%s\n", static_cast<unsigned long long>(cases), names.c_str());
  return 0;
}

} // namespace
