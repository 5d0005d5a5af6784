// Where an image becomes C4, and max pooling in C4; the oracle of both.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <vector>

#include "conv.h"

using namespace dp;

namespace {

// As large as a side, a kernel or a padding may be; and as many pixels as the padded image may have.
constexpr int kLargest = 1 << 20, kMostPixels = 1 << 26;

// Rows of a max pool's result that are made together.
constexpr int kRowsAtOnce = 16;

void quantize(int pixels, int channels, const float* x, float step, float zero_point, uint8_t* quad) {
  for (int pixel = 0; pixel < round_up(pixels, DP_PIXELS); ++pixel)
    for (int i = 0; i < DP_QUAD; ++i) {
      float f = 0;
      if (i < channels && pixel < pixels) {
        f = std::nearbyint(x[size_t(i) * pixels + pixel] / step) + zero_point;
        f = f < 255 ? f : 255; // and NaN
        f = f > 0 ? f : 0;
      }
      quad[pixel * DP_QUAD + i] = uint8_t(f);
    }
}

void max_rows(int bytes, const uint8_t* x, uint8_t* y) {
  for (int i = 0; i < bytes; ++i) y[i] = std::max(x[i], y[i]);
}

int span_out(int size, int before, int after, int kernel, int stride) {
  const int padded = size + before + after;
  return padded < kernel ? 0 : (padded - kernel) / stride + 1;
}

void max_columns(int pixels, int kernel, int stride, const uint8_t* x, uint8_t* y) {
  for (int pixel = 0; pixel < pixels; ++pixel, x += size_t(stride) * DP_QUAD, y += DP_QUAD) {
    std::memcpy(y, x, DP_QUAD);
    for (int i = DP_QUAD; i < kernel * DP_QUAD; ++i) y[i % DP_QUAD] = std::max(x[i], y[i % DP_QUAD]);
  }
}

// One quad, some rows of the result at a time. Rows are reduced first, then columns, for all of these rows: what has just
// been written in whole vectors cannot be read between them before it has left the CPU's queue.
void pool_quad(const Target& target, const dp_max_pool& how, int height_out, int width_out, const uint8_t* x, uint8_t* y) {
  const size_t pitch = size_t(how.width + how.pad_left + how.pad_right) * DP_QUAD, line = size_t(width_out) * DP_QUAD;
  const auto columns_of = target.max_columns && how.stride_x <= 2 ? target.max_columns : max_columns;
  std::vector<uint8_t> rows(pitch * size_t(std::min(kRowsAtOnce, height_out)) + 2 * kVectorBytes);
  for (int first = 0; first < height_out; first += kRowsAtOnce) {
    const int count = std::min(kRowsAtOnce, height_out - first);
    std::fill(rows.begin(), rows.end(), uint8_t(0));
    for (int row = 0; row < count; ++row)
      for (int ky = 0; ky < how.kernel_y; ++ky) {
        const int iy = (first + row) * how.stride_y - how.pad_top + ky;
        uint8_t* inside = rows.data() + size_t(row) * pitch + how.pad_left * DP_QUAD;
        if (iy >= 0 && iy < how.height)
          (target.max_rows ? target.max_rows : max_rows)(how.width * DP_QUAD, x + size_t(iy) * how.width * DP_QUAD, inside);
      }
    for (int row = 0; row < count; ++row)
      columns_of(width_out, how.kernel_x, how.stride_x, rows.data() + size_t(row) * pitch, y + size_t(first + row) * line);
  }
}

bool is_sound(const dp_max_pool& how) {
  for (int32_t size : {how.height, how.width, how.kernel_y, how.kernel_x, how.stride_y, how.stride_x})
    if (size <= 0 || size > kLargest) return false;
  for (int32_t pad : {how.pad_top, how.pad_left, how.pad_bottom, how.pad_right})
    if (pad < 0 || pad > kLargest) return false;
  const int64_t rows = int64_t(how.height) + how.pad_top + how.pad_bottom;
  if (rows * (int64_t(how.width) + how.pad_left + how.pad_right) > kMostPixels) return false;
  // A window that lies beside the image altogether would have no largest value.
  return how.pad_top < how.kernel_y && how.pad_left < how.kernel_x && how.pad_bottom < how.kernel_y &&
         how.pad_right < how.kernel_x;
}

} // namespace

extern "C" int dp_quantize_c4(const char* name, int32_t batch, int32_t pixels, int32_t channels, float step,
                              int32_t zero_point, const float* x, uint8_t* y) {
  if (!std::isfinite(step) || step <= 0 || zero_point < 0 || zero_point > 255) return 1;
  try {
    const Target& target = choose_target(name);
    const size_t plane = size_t(round_up(pixels, DP_PIXELS)) * DP_QUAD;
    for (int32_t n = 0; n < batch; ++n)
      for (int32_t first = 0; first < channels; first += DP_QUAD, y += plane) {
        const int here = std::min<int>(DP_QUAD, channels - first);
        (target.quantize ? target.quantize : quantize)(pixels, here, x, step, float(zero_point), y);
        x += size_t(here) * pixels;
      }
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

// The same on every target: three bytes of a pixel are three loads.
extern "C" int dp_pixels_c4(int32_t batch, int32_t pixels, int32_t channels, const uint8_t* table, const uint8_t* x, uint8_t* y) {
  if (batch < 0 || pixels < 0 || channels <= 0) return 1;
  const size_t plane = size_t(round_up(pixels, DP_PIXELS)) * DP_QUAD;
  for (int32_t n = 0; n < batch; ++n, x += size_t(pixels) * channels)
    for (int32_t first = 0; first < channels; first += DP_QUAD, y += plane) {
      const int here = std::min<int>(DP_QUAD, channels - first);
      const uint8_t* of_quad = table + size_t(first) * 256;
      for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        const uint8_t* from = x + size_t(pixel) * channels + first;
        uint32_t quad = 0;
        for (int i = 0; i < here; ++i) quad |= uint32_t(of_quad[i * 256 + from[i]]) << (8 * i);
        std::memcpy(y + size_t(pixel) * DP_QUAD, &quad, DP_QUAD);
      }
      std::memset(y + size_t(pixels) * DP_QUAD, 0, plane - size_t(pixels) * DP_QUAD);
    }
  return 0;
}

extern "C" int32_t dp_max_pool_height_out(const dp_max_pool* how) {
  return is_sound(*how) ? span_out(how->height, how->pad_top, how->pad_bottom, how->kernel_y, how->stride_y) : 0;
}

extern "C" int32_t dp_max_pool_width_out(const dp_max_pool* how) {
  return is_sound(*how) ? span_out(how->width, how->pad_left, how->pad_right, how->kernel_x, how->stride_x) : 0;
}

extern "C" int dp_max_pool_c4(const char* name, int32_t planes, const dp_max_pool* how, const uint8_t* x, uint8_t* y) {
  try {
    const Target& target = choose_target(name);
    const int height_out = dp_max_pool_height_out(how), width_out = dp_max_pool_width_out(how);
    if (height_out <= 0 || width_out <= 0) return 1;
    const size_t in = size_t(round_up(how->height * how->width, DP_PIXELS)) * DP_QUAD;
    const size_t out = size_t(round_up(height_out * width_out, DP_PIXELS)) * DP_QUAD;
    for (int32_t plane = 0; plane < planes; ++plane, x += in, y += out) pool_quad(target, *how, height_out, width_out, x, y);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}
