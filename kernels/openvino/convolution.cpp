// SparseConv: dp_conv_run.
#include "constants.h"
#include "register.h"
#include "scratch_pool.h"

namespace dp {
namespace {

using PreparedConv = Prepared<dp_conv, dp_conv_destroy>;

class SparseConv : public ov::op::Op {
 public:
  OPENVINO_OP("SparseConv", "deploypruner");
  SparseConv() = default;
  SparseConv(const ov::OutputVector& inputs, const SparseConv& like)
      : Op(inputs), at_(like.at_), prepared_(like.prepared_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 5 || get_input_size() == 6,
                          "needs x, mask, values, scale, bias and perhaps a residual, and got ", get_input_size(), " inputs");
    check_lists();
    const dp_conv_shape shape = this->shape();
    const int64_t height = dp_conv_height_out(&shape), width = dp_conv_width_out(&shape);
    NODE_VALIDATION_CHECK(this, height > 0 && width > 0, "the kernel is larger than the padded image");
    const ov::Dimension batch = get_input_partial_shape(0).rank() == 4 ? get_input_partial_shape(0)[0] : ov::Dimension(0);
    check_activation(0, c4(batch, at_.channels_in, at_.height * at_.width));
    const ov::PartialShape out = c4(batch, at_.channels_out, height * width);
    if (shape.has_residual) check_activation(5, out);
    if (!prepared_) prepare(shape);
    set_output_type(0, ov::element::u8, out);
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<SparseConv>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("channels_in", at_.channels_in);
    visitor.on_attribute("channels_out", at_.channels_out);
    visitor.on_attribute("group", at_.group);
    visitor.on_attribute("height", at_.height);
    visitor.on_attribute("width", at_.width);
    visitor.on_attribute("kernel_shape", at_.kernel_shape);
    visitor.on_attribute("strides", at_.strides);
    visitor.on_attribute("dilations", at_.dilations);
    visitor.on_attribute("pads", at_.pads);
    visitor.on_attribute("input_zero_point", at_.input_zero_point);
    visitor.on_attribute("output_zero_point", at_.output_zero_point);
    visitor.on_attribute("low", at_.low);
    visitor.on_attribute("high", at_.high);
    visitor.on_attribute("residual_scale", at_.residual_scale);
    visitor.on_attribute("residual_zero_point", at_.residual_zero_point);
    visitor.on_attribute("sum_low", at_.sum_low);
    visitor.on_attribute("sum_high", at_.sum_high);
    visitor.on_attribute("hard_swish_slope", at_.hard_swish_slope);
    visitor.on_attribute("swish_step", at_.swish_step);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const size_t batch = inputs[0].get_shape()[0];
    const ov::PartialShape& out = get_output_partial_shape(0);
    outputs[0].set_shape({batch, size_t(out[1].get_length()), size_t(out[2].get_length()), DP_QUAD});
    const Aligned x(inputs[0]), y(outputs[0]);
    std::unique_ptr<Aligned> residual;
    if (inputs.size() == 6) residual = std::make_unique<Aligned>(inputs[5]);
    const int threads = tbb::this_task_arena::max_concurrency();
    Buffer scratch = prepared_->pool->take(dp_conv_scratch_bytes(prepared_->layer, threads));
    dp_conv_run(prepared_->layer, int32_t(batch), x.data(), residual ? residual->data() : nullptr, y.data(), scratch.data,
                threads, threads > 1 ? on_tbb : nullptr, nullptr);
    prepared_->pool->give(std::move(scratch));
    y.write_back();
    return true;
  }

 private:
  struct Attributes {
    int64_t channels_in = 0, channels_out = 0, group = 1, height = 0, width = 0;
    std::vector<int64_t> kernel_shape{1, 1}, strides{1, 1}, dilations{1, 1}, pads{0, 0, 0, 0};
    int64_t input_zero_point = 0, output_zero_point = 0, low = 0, high = 255, residual_zero_point = 0;
    float residual_scale = 0, sum_low = 0, sum_high = 0, hard_swish_slope = 0, swish_step = 0;
  };

  void check_lists() const {
    NODE_VALIDATION_CHECK(this, at_.kernel_shape.size() == 2 && at_.strides.size() == 2 && at_.dilations.size() == 2 &&
                                    at_.pads.size() == 4,
                          "kernel_shape, strides and dilations need two numbers, pads four");
    for (const auto* list : {&at_.kernel_shape, &at_.strides, &at_.dilations})
      for (int64_t number : *list)
        NODE_VALIDATION_CHECK(this, number > 0 && number < (1 << 20), "kernel_shape, strides and dilations must be positive");
    for (int64_t number : at_.pads) NODE_VALIDATION_CHECK(this, number >= 0 && number < (1 << 20), "pads must not be negative");
    for (int64_t number : {at_.channels_in, at_.channels_out, at_.group, at_.height, at_.width})
      NODE_VALIDATION_CHECK(this, number > 0 && number < (1 << 24), "sizes must be positive");
  }

  void check_activation(size_t input, const ov::PartialShape& needed) const {
    NODE_VALIDATION_CHECK(this,
                          get_input_element_type(input) == ov::element::u8 && get_input_partial_shape(input).compatible(needed),
                          "input ", input, " needs uint8 ", needed, " and got ", get_input_element_type(input), " ",
                          get_input_partial_shape(input));
  }

  dp_conv_shape shape() const {
    dp_conv_shape s{};
    s.channels_in = int32_t(at_.channels_in), s.channels_out = int32_t(at_.channels_out), s.groups = int32_t(at_.group);
    s.height = int32_t(at_.height), s.width = int32_t(at_.width);
    s.kernel_y = int32_t(at_.kernel_shape[0]), s.kernel_x = int32_t(at_.kernel_shape[1]);
    s.stride_y = int32_t(at_.strides[0]), s.stride_x = int32_t(at_.strides[1]);
    s.dilation_y = int32_t(at_.dilations[0]), s.dilation_x = int32_t(at_.dilations[1]);
    s.pad_top = int32_t(at_.pads[0]), s.pad_left = int32_t(at_.pads[1]);
    s.pad_bottom = int32_t(at_.pads[2]), s.pad_right = int32_t(at_.pads[3]);
    s.input_zero_point = int32_t(at_.input_zero_point), s.output_zero_point = int32_t(at_.output_zero_point);
    s.low = int32_t(at_.low), s.high = int32_t(at_.high);
    s.has_residual = get_input_size() == 6, s.residual_zero_point = int32_t(at_.residual_zero_point);
    s.residual_scale = at_.residual_scale, s.sum_low = at_.sum_low, s.sum_high = at_.sum_high;
    s.hard_swish_slope = at_.hard_swish_slope, s.swish_step = at_.swish_step;
    return s;
  }

  // Once, when the model is read: a file whose weights contradict themselves is refused here and never runs.
  void prepare(const dp_conv_shape& shape) {
    const Constants constants(this, at_.channels_out);
    const dp_conv_weights weights = constants.weights();
    char error[256];
    dp_conv* conv = dp_conv_create(&shape, &weights, nullptr, error, sizeof error);
    NODE_VALIDATION_CHECK(this, conv, error);
    prepared_ = std::make_shared<PreparedConv>(conv);
  }

  Attributes at_;
  std::shared_ptr<PreparedConv> prepared_;
};

} // namespace

void add_convolution(Extensions& extensions) { add<SparseConv>(extensions, "SparseConv"); }

} // namespace dp
