// Squeeze and excitation: means of C4 channels, and C4 channels times a number each; the oracle of both.
#include <algorithm>
#include <cmath>
#include <exception>

#include "conv.h"

using namespace dp;

namespace {

// More could overflow an int32 sum of 255s.
constexpr int kMostPixels = 1 << 23;
// As large as a multiplier may be for 255 times it to fit an int32.
constexpr float kLargest = 1 << 20;

void sums(int pixels, const uint8_t* quad, int32_t (&sums)[DP_QUAD]) {
  std::fill(sums, sums + DP_QUAD, 0);
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int i = 0; i < DP_QUAD; ++i) sums[i] += quad[pixel * DP_QUAD + i];
}

void scale(int vectors, const uint8_t* x, const float (&m)[DP_QUAD], const float (&b)[DP_QUAD], uint8_t* y) {
  for (int at = 0; at < vectors * kVectorBytes; ++at) {
    const float f = std::nearbyint(std::fma(float(x[at]), m[at % DP_QUAD], b[at % DP_QUAD]));
    y[at] = uint8_t(std::min(std::max(f, 0.0f), 255.0f));
  }
}

// One quad, of which `channels` are left; those beyond the last are multiplied by zero.
void scale_quad(const Target& target, const dp_scale& how, int vectors, int channels, const uint8_t* x, const float* s,
                uint8_t* y) {
  float m[DP_QUAD] = {}, b[DP_QUAD] = {};
  for (int i = 0; i < std::min<int>(DP_QUAD, channels); ++i) {
    const float wanted = s[i] * how.ratio;
    m[i] = wanted > -kLargest ? std::min(wanted, kLargest) : -kLargest;
    b[i] = float(double(how.output_zero_point) - double(how.input_zero_point) * double(m[i]));
  }
  (target.scale ? target.scale : scale)(vectors, x, m, b, y);
}

} // namespace

extern "C" int dp_pool_c4(const char* name, int32_t batch, int32_t pixels, int32_t channels, int32_t zero_point, float factor,
                          const uint8_t* x, float* mean) {
  if (pixels > kMostPixels) return 1;
  try {
    const Target& target = choose_target(name);
    const size_t plane = size_t(round_up(pixels, DP_PIXELS)) * DP_QUAD;
    for (int32_t n = 0; n < batch; ++n)
      for (int32_t first = 0; first < channels; first += DP_QUAD, x += plane) {
        int32_t found[DP_QUAD];
        (target.sums ? target.sums : sums)(pixels, x, found);
        for (int i = 0; i < std::min<int>(DP_QUAD, channels - first); ++i)
          *mean++ = float(found[i] - pixels * zero_point) * factor;
      }
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

extern "C" int dp_scale_c4(const char* name, int32_t batch, int32_t pixels, int32_t channels, const dp_scale* how,
                           const uint8_t* x, const float* s, uint8_t* y) {
  if (pixels > kMostPixels) return 1;
  try {
    const Target& target = choose_target(name);
    const int vectors = round_up(pixels, DP_PIXELS) / DP_PIXELS;
    const size_t plane = size_t(vectors) * kVectorBytes;
    for (int32_t n = 0; n < batch; ++n, s += channels)
      for (int32_t first = 0; first < channels; first += DP_QUAD, x += plane, y += plane)
        scale_quad(target, *how, vectors, channels - first, x, s + first, y);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}
