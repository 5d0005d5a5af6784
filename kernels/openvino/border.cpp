// QuantizeC4, PixelsC4 and MaxPoolC4: dp_quantize_c4, dp_pixels_c4 and dp_max_pool_c4.
#include <atomic>

#include "register.h"

namespace dp {
namespace {

// body(i) for every i, on OpenVINO's threads where there are some; false where one fails.
template <class F>
bool for_each_plane(size_t count, const F& body) {
  struct Context {
    const F& body;
    std::atomic<bool> good{true};
  } context{body};
  const auto one = [](void* given, int32_t i) {
    Context& context = *static_cast<Context*>(given);
    if (!context.body(size_t(i))) context.good = false;
  };
  if (count > 1 && tbb::this_task_arena::max_concurrency() > 1)
    on_tbb(nullptr, int32_t(count), one, &context);
  else
    for (size_t i = 0; i < count; ++i) one(&context, int32_t(i));
  return context.good;
}

class QuantizeC4 : public ov::op::Op {
 public:
  OPENVINO_OP("QuantizeC4", "deploypruner");
  QuantizeC4() = default;
  QuantizeC4(const ov::OutputVector& inputs, const QuantizeC4& like)
      : Op(inputs), scale_(like.scale_), zero_point_(like.zero_point_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    const ov::PartialShape& in = get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::f32 && in.rank() == 4 && in[1].is_static() &&
                                    in[2].is_static() && in[3].is_static(),
                          "needs float32 [N, C, H, W] of fixed C, H and W, and got ", get_input_element_type(0), " ", in);
    NODE_VALIDATION_CHECK(this, scale_ > 0 && zero_point_ >= 0 && zero_point_ <= 255,
                          "needs a positive scale and a zero point in 0..255");
    set_output_type(0, ov::element::u8, c4(in[0], in[1].get_length(), in[2].get_length() * in[3].get_length()));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<QuantizeC4>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("scale", scale_);
    visitor.on_attribute("zero_point", zero_point_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Shape in = inputs[0].get_shape();
    const int64_t channels = int64_t(in[1]), pixels = int64_t(in[2] * in[3]);
    outputs[0].set_shape(c4(int64_t(in[0]), channels, pixels).to_shape());
    const Aligned out(outputs[0]);
    const float* x = inputs[0].data<const float>();
    const size_t planes = size_t(quads(channels)), plane = size_t(whole(pixels)) * DP_QUAD;
    const bool good = for_each_plane(in[0] * planes, [&](size_t i) {
      const int64_t image = int64_t(i / planes), first = int64_t(i % planes) * DP_QUAD;
      const float* from = x + (image * channels + first) * pixels;
      return !dp_quantize_c4(nullptr, 1, int32_t(pixels), int32_t(std::min<int64_t>(DP_QUAD, channels - first)), scale_,
                             int32_t(zero_point_), from, out.data() + i * plane);
    });
    out.write_back();
    return good;
  }

 private:
  float scale_ = 0;
  int64_t zero_point_ = 0;
};

class PixelsC4 : public ov::op::Op {
 public:
  OPENVINO_OP("PixelsC4", "deploypruner");
  PixelsC4() = default;
  PixelsC4(const ov::OutputVector& inputs, const PixelsC4&) : Op(inputs) { constructor_validate_and_infer_types(); }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 2, "needs an image and a table, and got ", get_input_size(), " inputs");
    const ov::PartialShape& in = get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::u8 && in.rank() == 4 && in[1].is_static() &&
                                    in[2].is_static() && in[3].is_static(),
                          "needs uint8 [N, H, W, C] of fixed H, W and C, and got ", get_input_element_type(0), " ", in);
    const ov::PartialShape table{in[3], 256};
    NODE_VALIDATION_CHECK(this, get_input_element_type(1) == ov::element::u8 && get_input_partial_shape(1) == table,
                          "needs a table of uint8 ", table, ", and got ", get_input_element_type(1), " ", get_input_partial_shape(1));
    set_output_type(0, ov::element::u8, c4(in[0], in[3].get_length(), in[1].get_length() * in[2].get_length()));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<PixelsC4>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor&) override { return true; }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const ov::Shape in = inputs[0].get_shape();
    const size_t pixels = in[1] * in[2], image = pixels * in[3];
    const ov::Shape out_shape = c4(int64_t(in[0]), int64_t(in[3]), int64_t(pixels)).to_shape();
    outputs[0].set_shape(out_shape);
    const Aligned out(outputs[0]);
    const uint8_t *x = inputs[0].data<const uint8_t>(), *table = inputs[1].data<const uint8_t>();
    const size_t bytes = ov::shape_size(out_shape) / std::max<size_t>(1, in[0]);
    const bool good = for_each_plane(in[0], [&](size_t i) {
      return !dp_pixels_c4(1, int32_t(pixels), int32_t(in[3]), table, x + i * image, out.data() + i * bytes);
    });
    out.write_back();
    return good;
  }
};

class MaxPoolC4 : public ov::op::Op {
 public:
  OPENVINO_OP("MaxPoolC4", "deploypruner");
  MaxPoolC4() = default;
  MaxPoolC4(const ov::OutputVector& inputs, const MaxPoolC4& like) : Op(inputs), at_(like.at_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, at_.kernel_shape.size() == 2 && at_.strides.size() == 2 && at_.pads.size() == 4,
                          "kernel_shape and strides need two numbers, pads four");
    for (const auto* list : {&at_.kernel_shape, &at_.strides, &at_.pads})
      for (int64_t number : *list) NODE_VALIDATION_CHECK(this, number >= 0 && number < (1 << 20), "a size is out of range");
    for (int64_t number : {at_.channels, at_.height, at_.width})
      NODE_VALIDATION_CHECK(this, number > 0 && number < (1 << 20), "sizes must be positive");
    const dp_max_pool how = this->how();
    const int64_t height = dp_max_pool_height_out(&how), width = dp_max_pool_width_out(&how);
    NODE_VALIDATION_CHECK(this, height > 0 && width > 0, "the kernel does not fit the image and its padding");
    const ov::PartialShape& in = get_input_partial_shape(0);
    const ov::PartialShape needed = c4(ov::Dimension::dynamic(), at_.channels, at_.height * at_.width);
    NODE_VALIDATION_CHECK(this, get_input_element_type(0) == ov::element::u8 && in.compatible(needed), "input 0 needs uint8 ",
                          needed, " and got ", get_input_element_type(0), " ", in);
    const ov::Dimension batch = in.rank().is_static() ? in[0] : ov::Dimension::dynamic();
    set_output_type(0, ov::element::u8, c4(batch, at_.channels, height * width));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<MaxPoolC4>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("channels", at_.channels);
    visitor.on_attribute("height", at_.height);
    visitor.on_attribute("width", at_.width);
    visitor.on_attribute("kernel_shape", at_.kernel_shape);
    visitor.on_attribute("strides", at_.strides);
    visitor.on_attribute("pads", at_.pads);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const dp_max_pool how = this->how();
    const int64_t height = dp_max_pool_height_out(&how), width = dp_max_pool_width_out(&how);
    const size_t batch = inputs[0].get_shape()[0];
    outputs[0].set_shape(c4(int64_t(batch), at_.channels, height * width).to_shape());
    const Aligned x(inputs[0]), y(outputs[0]);
    const size_t in = size_t(whole(at_.height * at_.width)) * DP_QUAD, out = size_t(whole(height * width)) * DP_QUAD;
    const bool good = for_each_plane(batch * size_t(quads(at_.channels)), [&](size_t i) {
      return !dp_max_pool_c4(nullptr, 1, &how, x.data() + i * in, y.data() + i * out);
    });
    y.write_back();
    return good;
  }

 private:
  struct Attributes {
    int64_t channels = 0, height = 0, width = 0;
    std::vector<int64_t> kernel_shape{1, 1}, strides{1, 1}, pads{0, 0, 0, 0};
  };

  dp_max_pool how() const {
    return {int32_t(at_.height),          int32_t(at_.width),      int32_t(at_.kernel_shape[0]), int32_t(at_.kernel_shape[1]),
            int32_t(at_.strides[0]), int32_t(at_.strides[1]), int32_t(at_.pads[0]),         int32_t(at_.pads[1]),
            int32_t(at_.pads[2]),    int32_t(at_.pads[3])};
  }

  Attributes at_;
};

} // namespace

void add_borders(Extensions& extensions) {
  add<QuantizeC4>(extensions, "QuantizeC4");
  add<PixelsC4>(extensions, "PixelsC4");
  add<MaxPoolC4>(extensions, "MaxPoolC4");
}

} // namespace dp
