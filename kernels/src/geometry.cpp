// Sizes of a convolution, and every reason to refuse one.
#include <cmath>
#include <initializer_list>
#include <limits>
#include <stdexcept>

#include "conv.h"

namespace dp {
namespace {

int64_t out_size(int size, int before, int after, int kernel, int dilation, int stride) {
  const int64_t span = int64_t(dilation) * (kernel - 1) + 1, padded = int64_t(size) + before + after;
  return stride > 0 && padded >= span ? (padded - span) / stride + 1 : 0;
}

void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

// Whether the product of positive numbers leaves room for offsets of 32 bits.
bool fits(std::initializer_list<int64_t> factors) {
  int64_t left = std::numeric_limits<int32_t>::max() / 8;
  for (int64_t factor : factors) left /= factor;
  return left > 0;
}

void check(const dp_conv_shape& s) {
  require(s.channels_in > 0 && s.channels_out > 0 && s.height > 0 && s.width > 0, "sizes must be positive");
  require(s.kernel_y > 0 && s.kernel_x > 0 && s.stride_y > 0 && s.stride_x > 0 && s.dilation_y > 0 && s.dilation_x > 0,
          "kernel, stride and dilation must be positive");
  require(s.pad_top >= 0 && s.pad_left >= 0 && s.pad_bottom >= 0 && s.pad_right >= 0, "padding must not be negative");
  require(s.groups > 0 && s.channels_in % s.groups == 0 && s.channels_out % s.groups == 0,
          std::to_string(s.channels_in) + " to " + std::to_string(s.channels_out) + " channels do not divide into " +
              std::to_string(s.groups) + " groups");
  for (int32_t byte : {s.input_zero_point, s.output_zero_point, s.low, s.high, s.residual_zero_point})
    require(byte >= 0 && byte <= 255, "zero points and limits must be in 0..255");
  require(s.low <= s.high, "low is above high");
  require(std::isfinite(s.residual_scale) && std::isfinite(s.hard_swish_slope) && std::isfinite(s.swish_step) &&
              s.hard_swish_slope >= 0 && s.swish_step >= 0,
          "scales must be finite, and slope and step of a swish not negative");
  require(std::isfinite(s.sum_low) && std::isfinite(s.sum_high) && s.sum_low <= s.sum_high,
          "limits before a residual must be finite, and the lower one not above the other");
  require(s.hard_swish_slope == 0 || s.swish_step == 0, "an output has one kind of swish");
  const int64_t rows = int64_t(s.height) + s.pad_top + s.pad_bottom, columns = int64_t(s.width) + s.pad_left + s.pad_right;
  require(fits({rows, columns, int64_t(s.channels_in) + DP_QUAD, int64_t(s.kernel_x) + 1}) &&
              fits({s.channels_in / s.groups, s.channels_out, s.kernel_y, s.kernel_x}),
          "the convolution is too large: offsets would not fit 32 bits");
}

} // namespace

Geometry::Geometry(const dp_conv_shape& s) : shape(s) {
  check(s);
  const int64_t height = out_size(s.height, s.pad_top, s.pad_bottom, s.kernel_y, s.dilation_y, s.stride_y);
  const int64_t width = out_size(s.width, s.pad_left, s.pad_right, s.kernel_x, s.dilation_x, s.stride_x);
  require(height > 0 && width > 0, "the kernel is larger than the padded image");
  require(fits({height, width, int64_t(s.channels_out) + DP_QUAD}), "the output is too large");
  height_out = int(height);
  width_out = int(width);
  quads_in = (s.channels_in + DP_QUAD - 1) / DP_QUAD;
  quads_out = (s.channels_out + DP_QUAD - 1) / DP_QUAD;
  pixels_in = round_up(s.height * s.width, DP_PIXELS);
  pixels_out = round_up(height_out * width_out, DP_PIXELS);
}

bool Geometry::is_direct() const {
  const dp_conv_shape& s = shape;
  return s.kernel_y == 1 && s.kernel_x == 1 && s.stride_y == 1 && s.stride_x == 1 && s.pad_top == 0 && s.pad_left == 0 &&
         s.pad_bottom == 0 && s.pad_right == 0;
}

} // namespace dp

extern "C" int32_t dp_conv_height_out(const dp_conv_shape* s) {
  return int32_t(dp::out_size(s->height, s->pad_top, s->pad_bottom, s->kernel_y, s->dilation_y, s->stride_y));
}

extern "C" int32_t dp_conv_width_out(const dp_conv_shape* s) {
  return int32_t(dp::out_size(s->width, s->pad_left, s->pad_right, s->kernel_x, s->dilation_x, s->stride_x));
}
