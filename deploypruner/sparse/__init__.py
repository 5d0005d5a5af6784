"""Sparse int8: from a QDQ ONNX model with zeros in its weights to one whose layers skip them."""

from __future__ import annotations

from deploypruner.sparse.choose import Choice
from deploypruner.sparse.convert import SparseModel, sparsify
from deploypruner.sparse.cost import Rates
from deploypruner.sparse.layer import Layer
from deploypruner.sparse.rewrite import DOMAIN

__all__ = ["DOMAIN", "Choice", "Layer", "Rates", "SparseModel", "sparsify"]
