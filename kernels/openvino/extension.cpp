// The kernels as OpenVINO operations of the ONNX domain "deploypruner". Shapes, layouts and formulas are those of
// deploypruner/kernels.h.
#include "operation.h"

namespace {

dp::Extensions all() {
  dp::Extensions extensions;
  dp::add_layouts(extensions);
  dp::add_convolution(extensions);
  dp::add_gates(extensions);
  dp::add_borders(extensions);
  dp::add_linear(extensions);
  return extensions;
}

} // namespace

OPENVINO_CREATE_EXTENSIONS(all());
