// Runs ONNX files inside OpenVINO with the operations of the extension, so that two processors can be compared: inputs are bytes that
// follow from their place, float layers stay float32, and of every output a checksum and its first values are printed, then how OpenVINO
// executes each layer.
// Arguments: the extension and the files.
#include <cstdio>
#include <cstring>
#include <openvino/openvino.hpp>

namespace {

ov::Tensor input_of(const ov::Output<const ov::Node>& input, uint32_t& state) {
  ov::Shape shape;
  for (const auto& side : input.get_partial_shape()) shape.push_back(side.is_static() ? size_t(side.get_length()) : 2);
  ov::Tensor x(input.get_element_type(), shape);
  for (size_t at = 0; at < x.get_size(); ++at) {
    state = state * 1664525u + 1013904223u;
    if (x.get_element_type() == ov::element::f32)
      x.data<float>()[at] = float(state >> 8) / float(1 << 23) - 1;
    else
      static_cast<uint8_t*>(x.data())[at] = uint8_t(state >> 24);
  }
  return x;
}

void print(const char* name, const ov::Tensor& y) {
  uint64_t hash = 1469598103934665603u;
  for (size_t at = 0; at < y.get_byte_size(); ++at) hash = (hash ^ static_cast<const uint8_t*>(y.data())[at]) * 1099511628211u;
  std::printf("output %s %016llx", name, static_cast<unsigned long long>(hash));
  for (size_t at = 0; y.get_element_type() == ov::element::f32 && at < std::min<size_t>(8, y.get_size()); ++at)
    std::printf(" %.6f", double(y.data<float>()[at]));
  std::printf("\n");
}

} // namespace

int main(int count, char** arguments) {
  ov::Core core;
  if (count > 1) core.add_extension(arguments[1]);
  for (int i = 2; i < count; ++i) {
    ov::CompiledModel model = core.compile_model(core.read_model(arguments[i]), "CPU", ov::inference_num_threads(1),
                                                 ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = model.create_infer_request();
    uint32_t state = 1;
    for (size_t n = 0; n < model.inputs().size(); ++n) request.set_input_tensor(n, input_of(model.inputs()[n], state));
    request.infer();
    for (size_t n = 0; n < model.outputs().size(); ++n) print(arguments[i], request.get_output_tensor(n));
    for (const auto& layer : model.get_runtime_model()->get_ordered_ops()) {
      const auto& about = layer->get_rt_info();
      std::printf("layer %s %s\n", about.at("layerType").as<std::string>().c_str(), about.at("primitiveType").as<std::string>().c_str());
    }
  }
}
