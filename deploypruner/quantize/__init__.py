"""Post-training quantization: fp32 ONNX to one int8 QDQ ONNX that both runtimes read."""

from __future__ import annotations

from deploypruner.quantize.placement import Placement
from deploypruner.quantize.static import QuantizationSummary, quantize_static
from deploypruner.recipe.sections import Method

__all__ = ["Method", "Placement", "QuantizationSummary", "quantize_static"]
