/* Sparse int8 convolution on CPUs: the one header.
 *
 * Everything a caller may rely on is here: formulas, layouts, units, and which bytes are read and written. The
 * OpenVINO extension, the Python bindings and the tests are all callers of these functions; nothing else is exported.
 *
 * FORMULA (one output value; integers exact, the rest IEEE float32, round to nearest even, in this order)
 *
 *   acc = bias[r] + sum over (c, ky, kx) of  x[n, c, iy, ix] * w[r, c, ky, kx]                      int32
 *         iy = oy * stride_y - pad_top  + ky * dilation_y         (outside the image x is input_zero_point;
 *         ix = ox * stride_x - pad_left + kx * dilation_x          bias[r] already holds -input_zero_point * sum w)
 *   f   = fma((float)acc, scale[r], shift)                                              in steps of the output
 *         shift = output_zero_point, or with a residual fma(-residual_zero_point, residual_scale, output_zero_point)
 *         where hard_swish_slope > 0, with v = (float)acc * scale[r] and slope = output step / 6:
 *         fma(v, min(max(fma(v, hard_swish_slope, 0.5), 0), 1), shift)
 *         where swish_step > 0, with v as before and swish_step = output step: fma(v, g, shift), where
 *           t = min(max(v * (swish_step / 1.5), -7.49), 7.49),  c = column rint(t) mod 16 of kGate in src/conv.h,
 *           g = fma(fma(fma(c[3], t, c[2]), t, c[1]), t, c[0]),  about sigmoid(1.5 t), piece by piece;
 *         of x * sigmoid(x) this misses 2e-4 at most while |x| <= 11, then 2e-5 |x|; 0.06 steps where |v| <= 256
 *   where there is a residual; the limits are those of a rounding that stood before the addition:
 *   f   = min(max(f, sum_low + shift), sum_high + shift)
 *   f   = fma((float)residual, residual_scale, f)
 *   y   = min(max(rint(f), low), high)                                                  uint8
 *
 *   ReLU is low = output_zero_point; ReLU6 is also high = output_zero_point + round(6 / output step).
 *
 * LAYOUT of an activation between these operations: "C4", uint8 [N][Q][P][4]
 *
 *   channel c of pixel p = y * width + x lies at  [n][c / 4][p][c % 4];  Q = ceil(C / 4), P = height * width rounded
 *   up to a multiple of 16. Sixteen pixels of four channels are one 64-byte vector, which is what one VPDPBUSD eats.
 *   The base is 64-byte aligned. Channels >= C and pixels >= height * width hold any value: they are read, multiplied
 *   by zero or thrown away, and written with any value. Nothing outside [N][Q][P][4] is read or written.
 *
 * WEIGHTS as they come in: a dense order (row r, then channel in the group, ky, kx, as in ONNX and torch) of which the
 * zeros are left out:  mask, one bit per weight, least significant bit of a byte first;  values, int8, one per set bit,
 * in the same order. Every pattern (1x4, nm64, N:M, unstructured, dense) is that. dp_conv_create unpacks it into what
 * the chosen target likes best.
 */
#ifndef DEPLOYPRUNER_KERNELS_H
#define DEPLOYPRUNER_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define DP_API __declspec(dllexport)
#else
#define DP_API __attribute__((visibility("default")))
#endif

/* Pixels of one vector; P is a multiple of it. */
enum { DP_PIXELS = 16, DP_QUAD = 4, DP_ALIGN = 64 };

typedef struct {
  int32_t channels_in, channels_out, groups;
  int32_t height, width;                     /* of the input */
  int32_t kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x;
  int32_t pad_top, pad_left, pad_bottom, pad_right;
  int32_t input_zero_point, output_zero_point, low, high; /* 0..255 */
  int32_t has_residual, residual_zero_point;
  float residual_scale, sum_low, sum_high; /* limits in steps of the output; -FLT_MAX, FLT_MAX: none */
  float hard_swish_slope, swish_step;      /* 0: none; not both */
} dp_conv_shape;

typedef struct {
  const uint8_t* mask;   /* ceil(channels_out * channels_in / groups * kernel_y * kernel_x / 8) bytes */
  size_t mask_bytes;
  const int8_t* values;  /* one for each set bit */
  size_t values_count;
  const float* scale;    /* [channels_out], output steps per accumulator step; finite */
  const int32_t* bias;   /* [channels_out] */
} dp_conv_weights;

typedef struct dp_conv dp_conv;

/* Runs `body(context, i)` for every i in 0 <= i < count, in any order, perhaps at once; returns when all are done. */
typedef void (*dp_parallel)(void* pool, int32_t count, void (*body)(void* context, int32_t i), void* context);

/* Height and width of the output; 0 where the kernel does not fit. */
DP_API int32_t dp_conv_height_out(const dp_conv_shape* shape);
DP_API int32_t dp_conv_width_out(const dp_conv_shape* shape);

/* A convolution, ready to run from any number of threads at once, or NULL with the reason in `error` (at most
 * `error_bytes`, always terminated). `target` is a name of dp_targets or NULL: then the environment variable
 * DEPLOYPRUNER_TARGET, then the best this CPU has. All that was passed in may be freed afterwards. */
DP_API dp_conv* dp_conv_create(const dp_conv_shape* shape, const dp_conv_weights* weights, const char* target,
                               char* error, size_t error_bytes);
DP_API void dp_conv_destroy(dp_conv* conv);

/* Bytes of scratch that a run with so many `threads` needs (may be 0), 64-byte aligned. One scratch serves one run at a
 * time. */
DP_API size_t dp_conv_scratch_bytes(const dp_conv* conv, int32_t threads);

/* y = conv(x). `x` [batch][Q in][P in][4], `y` and `residual` (or NULL) [batch][Q out][P out][4]; all 64-byte aligned,
 * y apart from the others. `threads` is how many pieces at least to cut the work into; NULL for `parallel` runs them
 * one after the other. */
DP_API void dp_conv_run(const dp_conv* conv, int32_t batch, const uint8_t* x, const uint8_t* residual, uint8_t* y,
                        void* scratch, int32_t threads, dp_parallel parallel, void* pool);

/* What the packed weights cost: vector multiply-add instructions per 16 output pixels, and bytes in memory. */
DP_API int64_t dp_conv_steps(const dp_conv* conv);
DP_API size_t dp_conv_bytes(const dp_conv* conv);
DP_API const char* dp_conv_target(const dp_conv* conv);

/* uint8 [batch][pixels][channels] (NHWC) to C4 and back. `target` as above; returns 0, or 1 with the reason. */
DP_API int dp_to_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, const uint8_t* nhwc, uint8_t* c4);
DP_API int dp_from_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, const uint8_t* c4, uint8_t* nhwc);

/* SQUEEZE AND EXCITATION on C4: what stands around the gate's small layers. Integers exact, the rest IEEE float32, round
 * to nearest even, in this order. Pixels and channels beyond the image count for nothing; `target` as above; returns 0,
 * or 1 where this CPU lacks the target or an image has more than 2^23 pixels.
 *
 *   dp_pool_c4    mean[n, c] = (float)(sum over p of (x[n, c, p] - zero_point)) * factor
 *                 factor = step of x / pixels;  `mean` is float32 [batch][channels]
 *   dp_scale_c4   m = min(max(s[n, c] * ratio, -2^20), 2^20), -2^20 for NaN;  ratio = step of x / step of y
 *                 b = output_zero_point - input_zero_point * m           (float64, then rounded to float32)
 *                 y[n, c, p] = min(max(rint(fma((float)x[n, c, p], m, b)), 0), 255);  `s` is float32 [batch][channels]
 *
 * `x` and `y` are C4, 64-byte aligned, and not one another; `s` and `mean` need no more than a float's alignment. */
typedef struct {
  int32_t input_zero_point, output_zero_point; /* 0..255 */
  float ratio;
} dp_scale;
DP_API int dp_pool_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, int32_t zero_point, float factor,
                      const uint8_t* x, float* mean);
DP_API int dp_scale_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, const dp_scale* how,
                       const uint8_t* x, const float* s, uint8_t* y);

/* THE BORDER. IEEE float32, round to nearest even; `target` and what is returned as above, 1 also for numbers that are not
 * sound.
 *
 *   dp_quantize_c4   y[n, c, p] = min(max(rint(x[n, c, p] / step) + zero_point, 0), 255), 255 for NaN
 *                    `x` is float32 [batch][channels][pixels], as images come in, and needs no more than a float's
 *                    alignment; the layout and ONNX's QuantizeLinear in one pass
 *   dp_pixels_c4     y[n, c, p] = table[c][x[n, p, c]]
 *                    `x` is uint8 [batch][pixels][channels], as decoders give images, and `table` [channels][256]: what
 *                    becomes of each byte when it is prepared and quantized
 *   dp_max_pool_c4   y[c, oy, ox] = largest x[c, iy, ix] of the window's pixels inside the image, of `planes` quads;
 *                    every padding is less than the kernel, so that there is one. Sides and paddings are
 *                    2^20 at most, the padded image has 2^26 pixels at most.
 */
DP_API int dp_quantize_c4(const char* target, int32_t batch, int32_t pixels, int32_t channels, float step,
                          int32_t zero_point, const float* x, uint8_t* y);
DP_API int dp_pixels_c4(int32_t batch, int32_t pixels, int32_t channels, const uint8_t* table, const uint8_t* x, uint8_t* y);
typedef struct {
  int32_t height, width; /* of the input */
  int32_t kernel_y, kernel_x, stride_y, stride_x, pad_top, pad_left, pad_bottom, pad_right;
} dp_max_pool;
DP_API int32_t dp_max_pool_height_out(const dp_max_pool* how); /* 0 where it is not sound or the kernel does not fit */
DP_API int32_t dp_max_pool_width_out(const dp_max_pool* how);
DP_API int dp_max_pool_c4(const char* target, int32_t planes, const dp_max_pool* how, const uint8_t* x, uint8_t* y);

/* LINEAR LAYERS OF ONE PIXEL: classifiers, and the small layers of squeeze and excitation. Floats in and out, quantized inside, so
 * that nothing stands before or behind them; each weight is read once for one product, which is what they take their time for.
 *
 *   q[n, c] = min(max(rint(x[n, c] / step) + zero_point, 0), 255), 255 for NaN
 *   v = (float)(bias[r] + sum over c of q[n, c] * w[r, c]) * scale[r]    scale: of real numbers per accumulator step
 *   y[n, r] = v;  DP_CLIP: min(max(v, low), high);  DP_HARD_SIGMOID: h(v) = min(max(v * slope + 0.5, 0), 1);
 *             DP_HARD_SWISH: v * h(v);  DP_SIGMOID: s(v) = 1 / (1 + exp(-v)) to 4e-7;  DP_SWISH: v * s(v)
 *
 * `x` float32 [batch][channels_in] and `y` float32 [batch][channels_out] need no more than a float's alignment, and are apart;
 * `scratch` is 64-byte aligned. Weights, `target`, errors, threads and what may be freed as with dp_conv; any target gives the same
 * bits. */
enum { DP_NONE, DP_CLIP, DP_HARD_SIGMOID, DP_HARD_SWISH, DP_SIGMOID, DP_SWISH };
typedef struct {
  int32_t channels_in, channels_out, zero_point, activation;
  float step, low, high, slope;
} dp_linear_shape;
typedef struct dp_linear dp_linear;
DP_API dp_linear* dp_linear_create(const dp_linear_shape* shape, const dp_conv_weights* weights, const char* target, char* error,
                                   size_t error_bytes);
DP_API void dp_linear_destroy(dp_linear* linear);
DP_API size_t dp_linear_scratch_bytes(const dp_linear* linear, int32_t batch);
DP_API void dp_linear_run(const dp_linear* linear, int32_t batch, const float* x, float* y, void* scratch, int32_t threads,
                          dp_parallel parallel, void* pool);
DP_API const char* dp_linear_target(const dp_linear* linear);

/* Names of the targets in this library, best last, and whether this CPU runs them. NULL past the end. */
DP_API const char* dp_target_name(int32_t i);
DP_API int dp_target_runs(int32_t i);

#ifdef __cplusplus
}
#endif
#endif
