// Random means and scales of squeeze and excitation on every target this CPU runs: each equals the oracle byte for byte,
// and the oracle float64 within one step. Every buffer lies between pages that may not be touched.
//
//   fuzz_gates [first case] [number of cases]      prints how many cases ran, or the case that failed, and returns 1
#include <cmath>
#include <cstring>
#include <limits>

#include "cases.h"

namespace {

struct Block {
  int batch, pixels, channels;
  bool at_front;

  explicit Block(Random& random)
      : batch(int(draw(random, 1, 3))),
        pixels(int(draw(random, 1, chance(random, 0.2) ? 3000 : 120))),
        channels(int(draw(random, 1, 70))),
        at_front(chance(random, 0.5)) {}

  size_t image() const { return c4_bytes(channels, pixels); }
};

std::string describe(uint64_t number, const Block& c, const std::string& target) {
  return "case " + std::to_string(number) + " on " + target + ": batch " + std::to_string(c.batch) + ", " +
         std::to_string(c.pixels) + " pixels, " + std::to_string(c.channels) + " channels: ";
}

// Floats at an address that is a multiple of four, and perhaps of nothing more.
struct Numbers {
  Numbers(size_t count, bool at_front) : memory(count * sizeof(float), at_front), data(reinterpret_cast<float*>(memory.data)) {}
  Guarded memory;
  float* data;
};

void check_pool(uint64_t number, const Block& c, Random& random, const uint8_t* x) {
  const int zero_point = int(draw(random, 0, 255));
  const float factor = float(draw(random, 1, 1000)) / 1e5f;
  const size_t count = size_t(c.batch) * c.channels;
  std::vector<float> oracle(count);
  for (const std::string& target : targets()) {
    Numbers mean(count, c.at_front);
    if (dp_pool_c4(target.c_str(), c.batch, c.pixels, c.channels, zero_point, factor, x, mean.data))
      fail(describe(number, c, target) + "the mean is refused");
    if (target == "scalar") std::memcpy(oracle.data(), mean.data, count * sizeof(float));
    if (std::memcmp(oracle.data(), mean.data, count * sizeof(float)))
      fail(describe(number, c, target) + "a mean is not the oracle's");
  }
  for (int n = 0; n < c.batch; ++n)
    for (int channel = 0; channel < c.channels; ++channel) {
      int64_t sum = 0;
      for (int pixel = 0; pixel < c.pixels; ++pixel) sum += x[n * c.image() + at(channel, pixel, c.pixels)] - zero_point;
      const double expected = double(sum) * double(factor), found = oracle[size_t(n) * c.channels + channel];
      if (std::abs(found - expected) > 1e-6 * std::abs(expected)) fail(describe(number, c, "scalar") + "a mean is wrong");
    }
}

float draw_factor(Random& random) {
  const float extremes[] = {0, -0.0f, 1e30f, -1e30f, std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 1e-40f};
  return chance(random, 0.05) ? extremes[draw(random, 0, 7)] : float(draw(random, -2000, 8000)) / 4000;
}

void check_scale(uint64_t number, const Block& c, Random& random, const uint8_t* x) {
  const dp_scale how{int32_t(draw(random, 0, 255)), int32_t(draw(random, 0, 255)), float(draw(random, 1, 4000)) / 1000};
  const size_t count = size_t(c.batch) * c.channels, bytes = c.batch * c.image();
  Numbers s(count, c.at_front);
  for (size_t i = 0; i < count; ++i) s.data[i] = draw_factor(random);
  s.memory.read_only();
  std::vector<uint8_t> oracle(bytes);
  for (const std::string& target : targets()) {
    Guarded y(bytes, c.at_front);
    if (dp_scale_c4(target.c_str(), c.batch, c.pixels, c.channels, &how, x, s.data, y.data))
      fail(describe(number, c, target) + "the scale is refused");
    if (target == "scalar") std::memcpy(oracle.data(), y.data, bytes);
    for (int n = 0; n < c.batch; ++n)
      for (int channel = 0; channel < c.channels; ++channel)
        for (int pixel = 0; pixel < c.pixels; ++pixel) {
          const size_t place = n * c.image() + at(channel, pixel, c.pixels);
          if (y.data[place] != oracle[place]) fail(describe(number, c, target) + "a product is not the oracle's");
        }
  }
  for (int n = 0; n < c.batch; ++n)
    for (int channel = 0; channel < c.channels; ++channel) {
      const double factor = double(s.data[size_t(n) * c.channels + channel]) * double(how.ratio);
      if (!(std::abs(factor) <= 1 << 20)) continue; // limited, see kernels.h
      for (int pixel = 0; pixel < c.pixels; ++pixel) {
        const size_t place = n * c.image() + at(channel, pixel, c.pixels);
        const double expected = std::rint((x[place] - how.input_zero_point) * factor) + how.output_zero_point;
        if (std::abs(std::clamp(expected, 0.0, 255.0) - oracle[place]) > 1)
          fail(describe(number, c, "scalar") + "a product is wrong");
      }
    }
}

void check_refusal(const uint8_t* x, float* s, uint8_t* y) {
  const dp_scale how{0, 0, 1};
  const int many = (1 << 23) + 1;
  if (!dp_pool_c4(nullptr, 1, many, 4, 0, 1, x, s) || !dp_scale_c4(nullptr, 1, many, 4, &how, x, s, y))
    fail("an image with more pixels than a sum can hold is accepted");
  if (!dp_pool_c4("avx9000", 1, 1, 1, 0, 1, x, s) || !dp_scale_c4("avx9000", 1, 1, 1, &how, x, s, y))
    fail("a target that does not exist is accepted");
}

} // namespace

int main(int count, char** arguments) {
  alignas(DP_ALIGN) uint8_t bytes[2 * DP_PIXELS * DP_QUAD] = {};
  float one[DP_QUAD] = {};
  check_refusal(bytes, one, bytes + DP_PIXELS * DP_QUAD);
  return run_cases(count, arguments, 1000, [](uint64_t number) {
    Random random(number);
    const Block c(random);
    Guarded x(c.batch * c.image(), c.at_front);
    fill(random, x.data, c.batch * c.image());
    x.read_only();
    check_pool(number, c, random, x.data);
    check_scale(number, c, random, x.data);
  });
}
