// An operation as an extension of OpenVINO and of its ONNX reader.
#pragma once

#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "operation.h"

namespace dp {

template <class Op>
void add(Extensions& extensions, const char* name) {
  extensions.push_back(std::make_shared<ov::OpExtension<Op>>());
  extensions.push_back(std::make_shared<ov::frontend::onnx::OpExtension<Op>>(name, "deploypruner"));
}

} // namespace dp
