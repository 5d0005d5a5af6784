"""Sparse int8: from a quantized ONNX with zeros in its weights to one that skips them."""
