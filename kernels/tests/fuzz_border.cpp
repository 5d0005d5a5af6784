// Random images, of floats and of bytes, and max pools on every target this CPU runs: each equals the equation of kernels.h, computed here once
// more, byte for byte. Every buffer lies between pages that may not be touched.
//
//   fuzz_border [first case] [number of cases]      prints how many cases ran, or the case that failed, and returns 1
#include <cmath>
#include <cstring>
#include <limits>

#include "cases.h"

namespace {

uint8_t quantized(float x, float step, int zero_point) {
  if (std::isnan(x)) return 255;
  const float f = std::nearbyint(x / step) + float(zero_point);
  return f >= 255 ? 255 : f <= 0 ? 0 : uint8_t(f);
}

float draw_value(Random& random, float step) {
  const float extremes[] = {0, -0.0f, 3e38f, -3e38f, std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 1e-40f};
  if (chance(random, 0.02)) return extremes[draw(random, 0, 7)];
  if (chance(random, 0.2)) return (float(draw(random, -300, 300)) + 0.5f) * step; // ties
  return float(draw(random, -400000, 400000)) / 1000 * step;
}

void check_quantize(uint64_t number) {
  Random random(number);
  const int batch = int(draw(random, 1, 2)), channels = int(draw(random, 1, 9));
  const int pixels = int(draw(random, 1, chance(random, 0.2) ? 2000 : 70)), zero_point = int(draw(random, 0, 255));
  const float step = float(draw(random, 1, 4000)) / 16384;
  const bool at_front = chance(random, 0.5);
  const size_t count = size_t(batch) * channels * pixels, image = c4_bytes(channels, pixels);
  Guarded memory(count * sizeof(float), at_front);
  float* x = reinterpret_cast<float*>(memory.data);
  for (size_t i = 0; i < count; ++i) x[i] = draw_value(random, step);
  memory.read_only();
  for (const std::string& target : targets()) {
    Guarded y(batch * image, at_front);
    const std::string named = "case " + std::to_string(number) + " on " + target + ": ";
    if (dp_quantize_c4(target.c_str(), batch, pixels, channels, step, zero_point, x, y.data)) fail(named + "refused");
    for (int n = 0; n < batch; ++n)
      for (int channel = 0; channel < channels; ++channel)
        for (int pixel = 0; pixel < pixels; ++pixel) {
          const float given = x[(size_t(n) * channels + channel) * pixels + pixel];
          const uint8_t found = y.data[n * image + at(channel, pixel, pixels)];
          if (found != quantized(given, step, zero_point))
            fail(named + std::to_string(given) + " of step " + std::to_string(step) + " becomes " + std::to_string(found));
        }
    for (float bad : {0.0f, -1.0f, NAN, INFINITY})
      if (!dp_quantize_c4(target.c_str(), batch, pixels, channels, bad, zero_point, x, y.data)) fail(named + "a step accepted");
    if (!dp_quantize_c4(target.c_str(), batch, pixels, channels, step, 256, x, y.data)) fail(named + "a zero point accepted");
  }
}

void check_pixels(uint64_t number) {
  Random random(number);
  const int batch = int(draw(random, 1, 2)), channels = int(draw(random, 1, 9)), pixels = int(draw(random, 1, 70));
  const bool at_front = chance(random, 0.5);
  Guarded x(size_t(batch) * pixels * channels, at_front), table(size_t(channels) * 256, at_front);
  fill(random, x.data, size_t(batch) * pixels * channels);
  fill(random, table.data, size_t(channels) * 256);
  x.read_only();
  table.read_only();
  const size_t image = c4_bytes(channels, pixels);
  Guarded y(batch * image, at_front);
  const std::string named = "pixels " + std::to_string(number) + ": ";
  if (dp_pixels_c4(batch, pixels, channels, table.data, x.data, y.data)) fail(named + "refused");
  for (int n = 0; n < batch; ++n)
    for (int pixel = 0; pixel < pixels; ++pixel)
      for (int channel = 0; channel < channels; ++channel)
        if (y.data[n * image + at(channel, pixel, pixels)] !=
            table.data[channel * 256 + x.data[(size_t(n) * pixels + pixel) * channels + channel]])
          fail(named + "channel " + std::to_string(channel) + ", pixel " + std::to_string(pixel) + " is another");
  if (!dp_pixels_c4(batch, pixels, 0, table.data, x.data, y.data)) fail(named + "an image without channels accepted");
}

void check_pool(uint64_t number) {
  Random random(number);
  dp_max_pool how{int32_t(draw(random, 1, 40)), int32_t(draw(random, 1, 70)), int32_t(draw(random, 1, 5)),
                  int32_t(draw(random, 1, 5)), int32_t(draw(random, 1, 3)), int32_t(draw(random, 1, 3)), 0, 0, 0, 0};
  how.pad_top = int32_t(draw(random, 0, how.kernel_y - 1)), how.pad_bottom = int32_t(draw(random, 0, how.kernel_y - 1));
  how.pad_left = int32_t(draw(random, 0, how.kernel_x - 1)), how.pad_right = int32_t(draw(random, 0, how.kernel_x - 1));
  const int high = dp_max_pool_height_out(&how), wide = dp_max_pool_width_out(&how), planes = int(draw(random, 1, 3));
  const bool at_front = chance(random, 0.5);
  const size_t in = c4_bytes(DP_QUAD, how.height * how.width), out = c4_bytes(DP_QUAD, high * wide);
  Guarded x(planes * in, at_front);
  for (size_t i = 0; i < planes * in; ++i) x.data[i] = uint8_t(random());
  x.read_only();
  for (const std::string& target : targets()) {
    const std::string named = "pool " + std::to_string(number) + " on " + target + ": ";
    Guarded y(planes * out, at_front);
    const bool refused = dp_max_pool_c4(target.c_str(), planes, &how, x.data, y.data);
    if (refused != (high <= 0 || wide <= 0)) fail(named + (refused ? "refused" : "accepted, and it does not fit"));
    for (int plane = 0; plane < planes && !refused; ++plane)
      for (int oy = 0; oy < high; ++oy)
        for (int ox = 0; ox < wide; ++ox)
          for (int i = 0; i < DP_QUAD; ++i) {
            int most = -1;
            for (int ky = 0; ky < how.kernel_y; ++ky)
              for (int kx = 0; kx < how.kernel_x; ++kx) {
                const int iy = oy * how.stride_y - how.pad_top + ky, ix = ox * how.stride_x - how.pad_left + kx;
                if (iy >= 0 && iy < how.height && ix >= 0 && ix < how.width)
                  most = std::max<int>(most, x.data[plane * in + size_t(iy * how.width + ix) * DP_QUAD + size_t(i)]);
              }
            if (y.data[plane * out + size_t(oy * wide + ox) * DP_QUAD + size_t(i)] != most)
              fail(named + "row " + std::to_string(oy) + ", column " + std::to_string(ox) + " is not the largest");
          }
  }
  int32_t dp_max_pool::* const sizes[] = {&dp_max_pool::height, &dp_max_pool::width, &dp_max_pool::kernel_y,
                                          &dp_max_pool::stride_x, &dp_max_pool::pad_top, &dp_max_pool::pad_right};
  for (auto size : sizes)
    for (int32_t bad : {-1, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
      dp_max_pool wrong = how;
      wrong.*size = bad;
      if (dp_max_pool_height_out(&wrong)) fail("pool " + std::to_string(number) + ": a size of " + std::to_string(bad) + " accepted");
    }
}

} // namespace

int main(int count, char** arguments) {
  return run_cases(count, arguments, 1000, [](uint64_t number) {
    check_quantize(number);
    check_pixels(number);
    check_pool(number);
  });
}
