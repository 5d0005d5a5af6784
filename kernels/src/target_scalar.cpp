// The oracle: the equation of kernels.h, output value by output value, from weights that know their channel and tap.
//
// Target 0 on any:
#include <algorithm>
#include <cmath>
#include <cstring>

#include "conv.h"

namespace dp {
namespace {

size_t at(int channel, int pixel, int pixels) {
  return (size_t(channel / DP_QUAD) * pixels + pixel) * DP_QUAD + channel % DP_QUAD;
}

void to_c4(int pixels, int channels, const uint8_t* nhwc, uint8_t* c4) {
  const int padded = round_up(pixels, DP_PIXELS);
  std::memset(c4, 0, size_t(round_up(channels, DP_QUAD)) * padded);
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int channel = 0; channel < channels; ++channel)
      c4[at(channel, pixel, padded)] = nhwc[size_t(pixel) * channels + channel];
}

void from_c4(int pixels, int channels, const uint8_t* c4, uint8_t* nhwc) {
  const int padded = round_up(pixels, DP_PIXELS);
  for (int pixel = 0; pixel < pixels; ++pixel)
    for (int channel = 0; channel < channels; ++channel)
      nhwc[size_t(pixel) * channels + channel] = c4[at(channel, pixel, padded)];
}

// What a swish multiplies by.
float gate(float t) {
  t = std::min(std::max(t, -kGateEnd), kGateEnd);
  const int column = int(std::nearbyint(t)) & 15;
  float found = kGate[3][column];
  for (int power = 2; power >= 0; --power) found = std::fma(found, t, kGate[power][column]);
  return found;
}

} // namespace

void run_equation(const Geometry& g, const std::vector<std::vector<Nonzero>>& rows, const Packed& packed,
                  const Epilogue& e, int row, const uint8_t* x, const uint8_t* residual, uint8_t* y) {
  const dp_conv_shape& s = g.shape;
  for (int oy = 0; oy < g.height_out; ++oy)
    for (int ox = 0; ox < g.width_out; ++ox) {
      int32_t acc = packed.bias[row];
      for (const Nonzero& w : rows[row]) {
        const int iy = oy * s.stride_y - s.pad_top + w.ky * s.dilation_y;
        const int ix = ox * s.stride_x - s.pad_left + w.kx * s.dilation_x;
        const bool inside = iy >= 0 && iy < s.height && ix >= 0 && ix < s.width;
        acc += w.value * (inside ? int32_t(x[at(w.channel, iy * s.width + ix, g.pixels_in)]) : s.input_zero_point);
      }
      const float sum = float(acc), scale = packed.scale[row];
      float f;
      if (e.hard_swish_slope > 0) {
        const float value = sum * scale, gate = std::fma(value, e.hard_swish_slope, 0.5f);
        f = std::fma(value, std::min(std::max(gate, 0.0f), 1.0f), e.shift);
      } else if (e.swish_rate > 0) {
        const float value = sum * scale;
        f = std::fma(value, gate(value * e.swish_rate), e.shift);
      } else {
        f = std::fma(sum, scale, e.shift);
      }
      const size_t to = at(row, oy * g.width_out + ox, g.pixels_out);
      if (residual) f = std::fma(float(residual[to]), e.residual_scale, std::min(std::max(f, e.sum_low), e.sum_high));
      const float rounded = std::nearbyint(f);
      y[to] = uint8_t(std::min(std::max(rounded, float(e.low)), float(e.high)));
    }
}

Target scalar_target() {
  return {"scalar", [] { return true; }, nullptr, 0, nullptr, to_c4, from_c4, nullptr};
}

} // namespace dp
