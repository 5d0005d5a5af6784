// PoolC4 and ScaleC4: dp_pool_c4 and dp_scale_c4.
#include <atomic>

#include "register.h"

namespace dp {
namespace {

// Channels that one piece of work takes at least, so that a piece is longer than starting it.
constexpr int64_t kPiece = 16 * DP_QUAD;

// The sizes of an activation, as attributes.
struct Sizes {
  int64_t channels = 0, height = 0, width = 0, zero_point = 0;

  void visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("channels", channels);
    visitor.on_attribute("height", height);
    visitor.on_attribute("width", width);
    visitor.on_attribute("zero_point", zero_point);
  }

  int64_t pixels() const { return height * width; }
  size_t plane() const { return size_t(whole(pixels())) * DP_QUAD; } // bytes of a quad

  void check(const ov::Node* node) const {
    for (int64_t size : {channels, height, width})
      NODE_VALIDATION_CHECK(node, size > 0 && size < (1 << 23), "sizes must be positive");
    NODE_VALIDATION_CHECK(node, pixels() <= 1 << 23, "an image has at most 2^23 pixels");
    NODE_VALIDATION_CHECK(node, zero_point >= 0 && zero_point <= 255, "zero points must be in 0..255");
    const ov::PartialShape needed = c4(ov::Dimension::dynamic(), channels, pixels()), &in = node->get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(node, node->get_input_element_type(0) == ov::element::u8 && in.compatible(needed),
                          "input 0 needs uint8 ", needed, " and got ", node->get_input_element_type(0), " ", in);
  }

  ov::Dimension batch(const ov::Node* node) const {
    const ov::PartialShape& in = node->get_input_partial_shape(0);
    return in.rank().is_static() ? in[0] : ov::Dimension::dynamic();
  }

  // body(image, first channel, channels) for every piece, on OpenVINO's threads; false where one fails.
  template <class F>
  bool in_pieces(size_t batch, const F& body) const {
    struct Context {
      const Sizes& sizes;
      const F& body;
      std::atomic<bool> good{true};
    } context{*this, body};
    const int32_t pieces = this->pieces();
    const auto one = [](void* given, int32_t i) {
      Context& context = *static_cast<Context*>(given);
      const int64_t pieces = context.sizes.pieces(), first = i % pieces * kPiece;
      if (!context.body(size_t(i / pieces), first, std::min(kPiece, context.sizes.channels - first))) context.good = false;
    };
    if (tbb::this_task_arena::max_concurrency() > 1)
      on_tbb(nullptr, int32_t(batch) * pieces, one, &context);
    else
      for (int32_t i = 0; i < int32_t(batch) * pieces; ++i) one(&context, i);
    return context.good;
  }

  int32_t pieces() const { return int32_t((channels + kPiece - 1) / kPiece); }
};

class PoolC4 : public ov::op::Op {
 public:
  OPENVINO_OP("PoolC4", "deploypruner");
  PoolC4() = default;
  PoolC4(const ov::OutputVector& inputs, const PoolC4& like) : Op(inputs), sizes_(like.sizes_), factor_(like.factor_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    sizes_.check(this);
    set_output_type(0, ov::element::f32, ov::PartialShape{sizes_.batch(this), sizes_.channels, 1, 1});
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<PoolC4>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    sizes_.visit(visitor);
    visitor.on_attribute("factor", factor_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const size_t batch = inputs[0].get_shape()[0], channels = size_t(sizes_.channels);
    outputs[0].set_shape({batch, channels, 1, 1});
    const Aligned x(inputs[0]);
    float* mean = outputs[0].data<float>();
    return sizes_.in_pieces(batch, [&](size_t n, int64_t first, int64_t count) {
      const size_t quad = n * size_t(quads(sizes_.channels)) + size_t(first / DP_QUAD);
      return !dp_pool_c4(nullptr, 1, int32_t(sizes_.pixels()), int32_t(count), int32_t(sizes_.zero_point), factor_,
                         x.data() + quad * sizes_.plane(), mean + n * channels + first);
    });
  }

 private:
  Sizes sizes_;
  float factor_ = 0;
};

class ScaleC4 : public ov::op::Op {
 public:
  OPENVINO_OP("ScaleC4", "deploypruner");
  ScaleC4() = default;
  ScaleC4(const ov::OutputVector& inputs, const ScaleC4& like)
      : Op(inputs), sizes_(like.sizes_), output_zero_point_(like.output_zero_point_), ratio_(like.ratio_) {
    constructor_validate_and_infer_types();
  }

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == 2, "needs x and s, and got ", get_input_size(), " inputs");
    sizes_.check(this);
    NODE_VALIDATION_CHECK(this, output_zero_point_ >= 0 && output_zero_point_ <= 255, "zero points must be in 0..255");
    const ov::PartialShape needed{sizes_.batch(this), sizes_.channels, 1, 1}, &s = get_input_partial_shape(1);
    NODE_VALIDATION_CHECK(this, get_input_element_type(1) == ov::element::f32 && s.compatible(needed), "input 1 needs float32 ",
                          needed, " and got ", get_input_element_type(1), " ", s);
    set_output_type(0, ov::element::u8, c4(sizes_.batch(this), sizes_.channels, sizes_.pixels()));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<ScaleC4>(inputs, *this);
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    sizes_.visit(visitor);
    visitor.on_attribute("output_zero_point", output_zero_point_);
    visitor.on_attribute("ratio", ratio_);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    const size_t batch = inputs[0].get_shape()[0], channels = size_t(sizes_.channels);
    if (inputs[1].get_shape() != ov::Shape{batch, channels, 1, 1}) return false;
    outputs[0].set_shape(inputs[0].get_shape());
    const Aligned x(inputs[0]), y(outputs[0]);
    const float* s = inputs[1].data<float>();
    const dp_scale how{int32_t(sizes_.zero_point), int32_t(output_zero_point_), ratio_};
    const bool good = sizes_.in_pieces(batch, [&](size_t n, int64_t first, int64_t count) {
      const size_t at = (n * size_t(quads(sizes_.channels)) + size_t(first / DP_QUAD)) * sizes_.plane();
      return !dp_scale_c4(nullptr, 1, int32_t(sizes_.pixels()), int32_t(count), &how, x.data() + at,
                          s + n * channels + first, y.data() + at);
    });
    y.write_back();
    return good;
  }

 private:
  Sizes sizes_;
  int64_t output_zero_point_ = 0;
  float ratio_ = 0;
};

} // namespace

void add_gates(Extensions& extensions) {
  add<PoolC4>(extensions, "PoolC4");
  add<ScaleC4>(extensions, "ScaleC4");
}

} // namespace dp
