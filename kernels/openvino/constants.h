// The stored weights of an operation: inputs 1 to 4 are mask, values, scale and bias.
#pragma once

#include <openvino/op/constant.hpp>

#include "operation.h"

namespace dp {

// Lives as long as what `weights` points to is read.
class Constants {
 public:
  Constants(const ov::Node* node, int64_t outputs)
      : mask_(constant(node, 1, ov::element::u8, "mask")),
        values_(constant(node, 2, ov::element::i8, "values")),
        scale_(constant(node, 3, ov::element::f32, "scale")),
        bias_(constant(node, 4, ov::element::i32, "bias")) {
    for (const auto& one : {scale_, bias_})
      NODE_VALIDATION_CHECK(node, int64_t(ov::shape_size(one->get_shape())) == outputs,
                            "scale and bias need one number for each of ", outputs, " output channels, and one has ",
                            ov::shape_size(one->get_shape()));
  }

  dp_conv_weights weights() const {
    dp_conv_weights weights{};
    weights.mask = mask_->get_data_ptr<uint8_t>();
    weights.mask_bytes = ov::shape_size(mask_->get_shape());
    weights.values = values_->get_data_ptr<int8_t>();
    weights.values_count = ov::shape_size(values_->get_shape());
    weights.scale = scale_->get_data_ptr<float>();
    weights.bias = bias_->get_data_ptr<int32_t>();
    return weights;
  }

 private:
  using Constant = std::shared_ptr<ov::op::v0::Constant>;

  static Constant constant(const ov::Node* node, size_t input, const ov::element::Type& type, const char* name) {
    auto found = ov::as_type_ptr<ov::op::v0::Constant>(node->get_input_node_shared_ptr(input));
    NODE_VALIDATION_CHECK(node, found && found->get_element_type() == type, name, " must be a constant of ", type);
    return found;
  }

  Constant mask_, values_, scale_, bias_;
};

} // namespace dp
