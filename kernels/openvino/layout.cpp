// ToC4 and FromC4: uint8 [N, H, W, C] to C4 and back.
#include "register.h"

namespace dp {
namespace {

class ToC4 : public ov::op::Op {
 public:
  OPENVINO_OP("ToC4", "deploypruner");
  ToC4() = default;
  explicit ToC4(const ov::OutputVector& inputs) : Op(inputs) { constructor_validate_and_infer_types(); }

  void validate_and_infer_types() override {
    const ov::PartialShape& in = get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::u8 && in.rank() == 4 && in[1].is_static() &&
                                    in[2].is_static() && in[3].is_static(),
                          "needs uint8 [N, H, W, C] of fixed H, W and C, and got ", get_input_element_type(0), " ", in);
    set_output_type(0, ov::element::u8, c4(in[0], in[3].get_length(), in[1].get_length() * in[2].get_length()));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<ToC4>(inputs);
  }

  bool visit_attributes(ov::AttributeVisitor&) override { return true; }
  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Shape in = inputs[0].get_shape();
    outputs[0].set_shape(c4(int64_t(in[0]), int64_t(in[3]), int64_t(in[1] * in[2])).to_shape());
    const Aligned out(outputs[0]);
    const bool failed = dp_to_c4(nullptr, int32_t(in[0]), int32_t(in[1] * in[2]), int32_t(in[3]),
                                 static_cast<const uint8_t*>(inputs[0].data()), out.data());
    out.write_back();
    return !failed;
  }
};

class FromC4 : public ov::op::Op {
 public:
  OPENVINO_OP("FromC4", "deploypruner");
  FromC4() = default;
  FromC4(const ov::OutputVector& inputs, const FromC4& like)
      : Op(inputs), channels_(like.channels_), height_(like.height_), width_(like.width_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    const ov::PartialShape& in = get_input_partial_shape(0);
    const ov::PartialShape needed = c4(ov::Dimension::dynamic(), channels_, height_ * width_);
    NODE_VALIDATION_CHECK(this, channels_ > 0 && height_ > 0 && width_ > 0, "channels, height and width must be positive");
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::u8 && in.compatible(needed), "needs uint8 ", needed,
                          " and got ", get_input_element_type(0), " ", in);
    set_output_type(0, ov::element::u8, ov::PartialShape{in[0], height_, width_, channels_});
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<FromC4>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("channels", channels_);
    visitor.on_attribute("height", height_);
    visitor.on_attribute("width", width_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const size_t batch = inputs[0].get_shape()[0];
    outputs[0].set_shape({batch, size_t(height_), size_t(width_), size_t(channels_)});
    const Aligned in(inputs[0]);
    return !dp_from_c4(nullptr, int32_t(batch), int32_t(height_ * width_), int32_t(channels_), in.data(),
                       static_cast<uint8_t*>(outputs[0].data()));
  }

 private:
  int64_t channels_ = 0, height_ = 0, width_ = 0;
};

} // namespace

void add_layouts(Extensions& extensions) {
  add<ToC4>(extensions, "ToC4");
  add<FromC4>(extensions, "FromC4");
}

} // namespace dp
