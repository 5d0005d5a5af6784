// SparseLinear: dp_linear_run.
#include "constants.h"
#include "register.h"
#include "scratch_pool.h"

namespace dp {
namespace {

using PreparedLinear = Prepared<dp_linear, dp_linear_destroy>;

class SparseLinear : public ov::op::Op {
 public:
  OPENVINO_OP("SparseLinear", "deploypruner");
  SparseLinear() = default;
  SparseLinear(const ov::OutputVector& inputs, const SparseLinear& like) : Op(inputs), at_(like.at_), prepared_(like.prepared_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 5, "needs x, mask, values, scale and bias, and got ", get_input_size(), " inputs");
    for (int64_t size : {at_.channels_in, at_.channels_out})
      NODE_VALIDATION_CHECK(this, size > 0 && size < (1 << 24), "sizes must be positive");
    const ov::PartialShape& in = get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::f32 && in.rank().is_static() && in.rank().get_length() >= 2 &&
                                    in.compatible(of_channels(in, at_.channels_in)),
                          "needs float32 [N, ", at_.channels_in, ", 1, ...], and got ", get_input_element_type(0), " ", in);
    if (!prepared_) prepare();
    set_output_type(0, ov::element::f32, of_channels(in, at_.channels_out));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<SparseLinear>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("channels_in", at_.channels_in);
    visitor.on_attribute("channels_out", at_.channels_out);
    visitor.on_attribute("step", at_.step);
    visitor.on_attribute("zero_point", at_.zero_point);
    visitor.on_attribute("activation", at_.activation);
    visitor.on_attribute("low", at_.low);
    visitor.on_attribute("high", at_.high);
    visitor.on_attribute("slope", at_.slope);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Shape in = inputs[0].get_shape();
    outputs[0].set_shape(of_channels(in, at_.channels_out).to_shape());
    const int32_t batch = int32_t(in[0]), threads = tbb::this_task_arena::max_concurrency();
    Buffer scratch = prepared_->pool->take(dp_linear_scratch_bytes(prepared_->layer, batch));
    dp_linear_run(prepared_->layer, batch, inputs[0].data<const float>(), outputs[0].data<float>(), scratch.data, threads,
                  threads > 1 ? on_tbb : nullptr, nullptr);
    prepared_->pool->give(std::move(scratch));
    return true;
  }

 private:
  struct Attributes {
    int64_t channels_in = 0, channels_out = 0, zero_point = 0, activation = 0;
    float step = 0, low = 0, high = 0, slope = 0;
  };

  // [N, channels, 1, ...] of as many dimensions as `like`.
  static ov::PartialShape of_channels(const ov::PartialShape& like, int64_t channels) {
    ov::PartialShape shape = ov::PartialShape::dynamic(like.rank());
    for (int64_t i = 0; i < like.rank().get_length(); ++i) shape[i] = i == 0 ? like[0] : ov::Dimension(i == 1 ? channels : 1);
    return shape;
  }

  void prepare() {
    const Constants constants(this, at_.channels_out);
    const dp_conv_weights weights = constants.weights();
    const dp_linear_shape shape{int32_t(at_.channels_in), int32_t(at_.channels_out), int32_t(at_.zero_point),
                                int32_t(at_.activation),  at_.step,                  at_.low,
                                at_.high,                 at_.slope};
    char error[256];
    dp_linear* linear = dp_linear_create(&shape, &weights, nullptr, error, sizeof error);
    NODE_VALIDATION_CHECK(this, linear, error);
    prepared_ = std::make_shared<PreparedLinear>(linear);
  }

  Attributes at_;
  std::shared_ptr<PreparedLinear> prepared_;
};

} // namespace

void add_linear(Extensions& extensions) { add<SparseLinear>(extensions, "SparseLinear"); }

} // namespace dp
