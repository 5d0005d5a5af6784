"""ONNX operators in torch, differentiable where floats are computed: what an exported network is made of.

Each takes its node and what it reads, None for an input that is left out, and gives its output, or a tuple of
several. Sizes come as tensors of integers, as in ONNX.
"""

from __future__ import annotations

from deploypruner.qat.operators import elementwise, layers, reductions, shapes
from deploypruner.qat.operators.register import OPERATORS

__all__ = ["OPERATORS", "elementwise", "layers", "reductions", "shapes"]
