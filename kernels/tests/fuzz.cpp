// Random convolutions on every target this CPU runs: each equals the oracle byte for byte, and the oracle the equation
// in float64 within one step. Every buffer lies between pages that may not be touched, inputs may not be written.
//
//   fuzz [first case] [number of cases]      prints how many cases ran, or the case that failed, and returns 1
//
// A case depends on its number alone: `fuzz 4711 1` runs that one again. Under -fsanitize=thread every case runs on threads.
#include <cstring>
#include <limits>

#include "cases.h"

namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kAlwaysParallel = true;
#else
constexpr bool kAlwaysParallel = false;
#endif

// One output in float64, before rounding, straight from the header's formula.
double equation(const Case& c, int row, int pixel, const uint8_t* x, const uint8_t* residual) {
  const dp_conv_shape& s = c.shape;
  const int width_out = dp_conv_width_out(&s), oy = pixel / width_out, ox = pixel % width_out;
  const int group = row / (s.channels_out / s.groups);
  double sum = c.bias[size_t(row)];
  for (int i = 0; i < c.per_group(); ++i)
    for (int ky = 0; ky < s.kernel_y; ++ky)
      for (int kx = 0; kx < s.kernel_x; ++kx) {
        const int iy = oy * s.stride_y - s.pad_top + ky * s.dilation_y, ix = ox * s.stride_x - s.pad_left + kx * s.dilation_x;
        const bool inside = iy >= 0 && iy < s.height && ix >= 0 && ix < s.width;
        const int value = inside ? x[at(group * c.per_group() + i, iy * s.width + ix, c.pixels_in())] : s.input_zero_point;
        sum += value * c.dense[((size_t(row) * c.per_group() + i) * s.kernel_y + ky) * s.kernel_x + kx];
      }
  double f = sum * double(c.scale[size_t(row)]);
  if (s.hard_swish_slope > 0) f *= std::clamp(f * double(s.hard_swish_slope) + 0.5, 0.0, 1.0);
  if (s.swish_step > 0) f /= 1 + std::exp(-f * double(s.swish_step));
  if (s.has_residual) {
    const int added = residual[at(row, pixel, c.pixels_out())] - s.residual_zero_point;
    f = std::clamp(f, double(s.sum_low), double(s.sum_high)) + added * double(s.residual_scale);
  }
  return std::clamp(std::rint(f) + s.output_zero_point, double(s.low), double(s.high));
}

struct Inputs {
  Guarded x, residual, mask, values, scale, bias;
  dp_conv_weights weights{};

  Inputs(const Case& c, Random& random, bool at_front)
      : x(c.batch * c4_bytes(c.shape.channels_in, c.pixels_in()), at_front),
        residual(c.batch * c4_bytes(c.shape.channels_out, c.pixels_out()), at_front),
        mask((c.dense.size() + 7) / 8, at_front),
        values(c.dense.size() - size_t(std::count(c.dense.begin(), c.dense.end(), 0)), at_front),
        scale(c.scale.size() * sizeof(float), at_front),
        bias(c.bias.size() * sizeof(int32_t), at_front) {
    fill(random, x.data, c.batch * c4_bytes(c.shape.channels_in, c.pixels_in()));
    fill(random, residual.data, c.batch * c4_bytes(c.shape.channels_out, c.pixels_out()));
    std::memset(mask.data, 0, (c.dense.size() + 7) / 8);
    size_t count = 0;
    for (size_t i = 0; i < c.dense.size(); ++i)
      if (c.dense[i]) {
        mask.data[i / 8] = uint8_t(mask.data[i / 8] | 1 << i % 8);
        values.data[count++] = uint8_t(c.dense[i]);
      }
    std::memcpy(scale.data, c.scale.data(), c.scale.size() * sizeof(float));
    std::memcpy(bias.data, c.bias.data(), c.bias.size() * sizeof(int32_t));
    weights = {mask.data, (c.dense.size() + 7) / 8, reinterpret_cast<int8_t*>(values.data), count,
               reinterpret_cast<float*>(scale.data), reinterpret_cast<int32_t*>(bias.data)};
    for (Guarded* one : {&x, &residual, &mask, &values, &scale, &bias}) one->read_only();
  }
};

// The valid bytes of one run, channel by channel.
std::vector<uint8_t> run(uint64_t number, const Case& c, const Inputs& in, const std::string& target, bool at_front) {
  char error[256] = "";
  dp_conv* conv = dp_conv_create(&c.shape, &in.weights, target.c_str(), error, sizeof error);
  if (!conv) fail(describe(number, c, target) + ": refused: " + error);
  const size_t bytes = c4_bytes(c.shape.channels_out, c.pixels_out());
  const bool oracle = target == "scalar", is_parallel = c.is_parallel || kAlwaysParallel;
  const int threads = oracle ? 1 : c.threads;
  const size_t scratch_bytes = dp_conv_scratch_bytes(conv, threads);
  Guarded y(c.batch * bytes, at_front), scratch(scratch_bytes, at_front);
  std::memset(y.data, 0xa5, c.batch * bytes);
  std::memset(scratch.data, 0x5a, scratch_bytes);
  dp_conv_run(conv, c.batch, in.x.data, c.shape.has_residual ? in.residual.data : nullptr, y.data, scratch.data,
              threads, is_parallel && !oracle ? on_threads : nullptr, nullptr);
  dp_conv_destroy(conv);
  std::vector<uint8_t> found;
  for (int n = 0; n < c.batch; ++n)
    for (int row = 0; row < c.shape.channels_out; ++row)
      for (int pixel = 0; pixel < c.pixels_out(); ++pixel)
        found.push_back(y.data[n * bytes + at(row, pixel, c.pixels_out())]);
  return found;
}

void check_convolution(uint64_t number) {
  const Case c = draw_case(number);
  Random random(~number);
  const bool at_front = chance(random, 0.5);
  const Inputs in(c, random, at_front);
  const std::vector<uint8_t> oracle = run(number, c, in, "scalar", at_front);
  for (const std::string& target : targets()) {
    const std::vector<uint8_t> found = run(number, c, in, target, at_front);
    for (size_t i = 0; i < found.size(); ++i)
      if (found[i] != oracle[i]) {
        const size_t row = i / size_t(c.pixels_out()), pixel = i % size_t(c.pixels_out());
        fail(describe(number, c, target) + ": channel " + std::to_string(row) + ", pixel " + std::to_string(pixel) + " is " +
             std::to_string(found[i]) + ", the oracle says " + std::to_string(oracle[i]));
      }
  }
  const size_t image = size_t(c.shape.channels_out) * c.pixels_out();
  for (int i = 0; i < 40; ++i) {
    const size_t place = size_t(draw(random, 0, int64_t(oracle.size()) - 1)), n = place / image;
    const int row = int(place % image / size_t(c.pixels_out())), pixel = int(place % size_t(c.pixels_out()));
    const double expected = equation(c, row, pixel, in.x.data + n * c4_bytes(c.shape.channels_in, c.pixels_in()),
                                     in.residual.data + n * c4_bytes(c.shape.channels_out, c.pixels_out()));
    if (std::abs(expected - oracle[place]) > 1)
      fail(describe(number, c, "scalar") + ": " + std::to_string(oracle[place]) + ", in float64 " + std::to_string(expected));
  }
}

// There and back again gives the same bytes, on every target.
void check_layout(uint64_t number) {
  Random random(number);
  const int batch = int(draw(random, 1, 2)), pixels = int(draw(random, 1, 70)), channels = int(draw(random, 1, 150));
  const bool at_front = chance(random, 0.5);
  const size_t plain = size_t(batch) * pixels * channels, bytes = batch * c4_bytes(channels, pixels);
  Guarded nhwc(plain, at_front);
  fill(random, nhwc.data, plain);
  nhwc.read_only();
  for (const std::string& target : targets()) {
    Guarded c4(bytes, at_front), back(plain, at_front);
    if (dp_to_c4(target.c_str(), batch, pixels, channels, nhwc.data, c4.data)) fail("to_c4 refused " + target);
    for (int n = 0; n < batch; ++n)
      for (int pixel = 0; pixel < pixels; ++pixel)
        for (int channel = 0; channel < channels; ++channel)
          if (c4.data[n * c4_bytes(channels, pixels) + at(channel, pixel, pixels)] !=
              nhwc.data[(size_t(n) * pixels + pixel) * channels + channel])
            fail("layout " + std::to_string(number) + " on " + target + ": to_c4 puts a byte elsewhere");
    c4.read_only();
    if (dp_from_c4(target.c_str(), batch, pixels, channels, c4.data, back.data)) fail("from_c4 refused " + target);
    if (std::memcmp(back.data, nhwc.data, plain)) fail("layout " + std::to_string(number) + " on " + target + ": not the same");
  }
}

// One prepared convolution from eight threads at once, each with a scratch of its own and perhaps threads of its own,
// gives each time what it gives alone.
void check_at_once(uint64_t number) {
  const Case c = draw_case(number);
  Random random(number);
  const Inputs in(c, random, false);
  const size_t bytes = c.batch * c4_bytes(c.shape.channels_out, c.pixels_out());
  const dp_parallel parallel = number % 32 ? nullptr : on_threads;
  char error[256];
  for (const std::string& target : targets()) {
    dp_conv* conv = dp_conv_create(&c.shape, &in.weights, target.c_str(), error, sizeof error);
    if (!conv) fail(describe(number, c, target) + ": refused: " + error);
    const auto result = [&](int times) {
      Guarded y(bytes, false), scratch(dp_conv_scratch_bytes(conv, c.threads), false);
      for (int i = 0; i < times; ++i) {
        std::memset(y.data, 0, bytes);
        dp_conv_run(conv, c.batch, in.x.data, in.residual.data, y.data, scratch.data, c.threads, parallel, nullptr);
      }
      return std::vector<uint8_t>(y.data, y.data + bytes);
    };
    const std::vector<uint8_t> alone = result(1);
    std::vector<std::vector<uint8_t>> found(8);
    std::vector<std::thread> threads;
    for (auto& mine : found) threads.emplace_back([&] { mine = result(3); });
    for (std::thread& thread : threads) thread.join();
    for (const auto& mine : found)
      if (mine != alone) fail(describe(number, c, target) + ": eight runs at once differ from one alone");
    dp_conv_destroy(conv);
  }
}

// What no file may get past: NULL and a reason, whatever the numbers.
void check_refusal(uint64_t number) {
  Case c = draw_case(number);
  Random random(number);
  Inputs in(c, random, false);
  const auto refused = [&](const dp_conv_shape& shape, const dp_conv_weights& weights, const char* target, const char* what) {
    char error[128] = "";
    dp_conv* conv = dp_conv_create(&shape, &weights, target, error, sizeof error);
    if (conv || !error[0]) fail(describe(number, c, what) + ": accepted, or without a reason");
  };
  dp_conv_weights short_mask = in.weights, short_values = in.weights, many_values = in.weights;
  --short_mask.mask_bytes;
  refused(c.shape, short_mask, nullptr, "a short mask");
  if (in.weights.values_count) {
    --short_values.values_count;
    refused(c.shape, short_values, nullptr, "a value too few");
  }
  ++many_values.values_count;
  refused(c.shape, many_values, nullptr, "a value too many");
  refused(c.shape, in.weights, "avx9000", "a target that does not exist");
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    Guarded scale(c.scale.size() * sizeof(float), false);
    std::memcpy(scale.data, in.scale.data, c.scale.size() * sizeof(float));
    reinterpret_cast<float*>(scale.data)[draw(random, 0, int64_t(c.scale.size()) - 1)] = bad;
    dp_conv_weights weights = in.weights;
    weights.scale = reinterpret_cast<float*>(scale.data);
    refused(c.shape, weights, nullptr, "a scale that is not finite");
  }
  int32_t dp_conv_shape::* const sizes[] = {
      &dp_conv_shape::channels_in, &dp_conv_shape::channels_out, &dp_conv_shape::groups,     &dp_conv_shape::height,
      &dp_conv_shape::width,       &dp_conv_shape::kernel_y,     &dp_conv_shape::kernel_x,   &dp_conv_shape::stride_y,
      &dp_conv_shape::stride_x,    &dp_conv_shape::dilation_y,   &dp_conv_shape::dilation_x, &dp_conv_shape::pad_top,
      &dp_conv_shape::low,         &dp_conv_shape::input_zero_point};
  for (auto size : sizes)
    for (int32_t bad : {-1, std::numeric_limits<int32_t>::min()}) {
      dp_conv_shape shape = c.shape;
      shape.*size = bad;
      refused(shape, in.weights, nullptr, "a negative size");
    }
  for (auto size : sizes) { // accepted or refused: no overflow on the way
    dp_conv_shape shape = c.shape;
    shape.*size = std::numeric_limits<int32_t>::max() - int32_t(draw(random, 0, 2));
    char error[128] = "";
    dp_conv_destroy(dp_conv_create(&shape, &in.weights, nullptr, error, sizeof error));
  }
}

} // namespace

int main(int count, char** arguments) {
  return run_cases(count, arguments, 1000, [](uint64_t number) {
    check_convolution(number);
    if (number % 4 == 0) check_layout(number);
    if (number % 16 == 0) check_at_once(number);
    if (number % 16 == 1) check_refusal(number);
  });
}
