"""Sparse int8: from a QDQ ONNX model with zeros in its weights to one whose layers skip them.

`convert.sparsify` is the way in. Nothing is imported here, so that a runtime finds `library` without onnx.
"""
