"""From a dense int8 QDQ model to a sparse one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from deploypruner.errors import InputError
from deploypruner.onnx_file import every_node
from deploypruner.onnx_graph import read_graph
from deploypruner.sparse.cost import Costs, Rates
from deploypruner.sparse.custom_ops import DOMAIN
from deploypruner.sparse.layer import Weighted
from deploypruner.sparse.match import match
from deploypruner.sparse.partition import LayerDecision, choose
from deploypruner.sparse.rewrite import rewrite


@dataclass(frozen=True)
class SparseModel:
    """Result of `sparsify`.

    Args:
        model: The model with operations of domain "deploypruner"; None where no layer went sparse.
        choices: Every layer and gate the kernels could compute, in the graph's order.
        refused: Name of every other convolution and matrix product -> why not.
        costs: What the decisions were made with.
    """

    model: onnx.ModelProto | None
    choices: tuple[LayerDecision, ...]
    refused: dict[str, str]
    costs: Costs

    @property
    def chosen(self) -> int:
        """Layers that went sparse."""
        return sum(choice.sparse and isinstance(choice.layer, Weighted) for choice in self.choices)


def sparsify(model: onnx.ModelProto, *, costs: Costs | None = None, every: bool = False) -> SparseModel:
    """Replace the layers of an int8 QDQ model that our kernels compute faster, zeros left out.

    Args:
        model: u8 or s8 activations, s8 or u8 weights, as our quantizer or any other static one writes it; unchanged.
            The batch may be open, all other sizes must be fixed.
        costs: Of layers and borders; `Rates` where None.
        every: Convert every layer that can be, whatever it costs; for tests and measurements.

    Raises:
        InputError: The model is not sound ONNX, is sparse already, has open sizes, or no quantized layer.
    """
    check_convertible(model)
    read = read_graph(model)
    if not any(node.op_type == "QuantizeLinear" for node in read.graph):
        raise InputError("the model is not quantized", hint="`deploypruner sparsify MODEL --data DIR` does it first")
    found = match(read.graph)
    costs = costs or Rates()
    choices = choose(read.graph, found.layers, costs)
    if every:
        choices = tuple(LayerDecision(c.layer, True, c.sparse_ns, c.dense_ns, "asked for") for c in choices)
    chosen = [choice.layer for choice in choices if choice.sparse]
    if not any(isinstance(layer, Weighted) for layer in chosen):  # gates alone are no sparse model
        chosen, choices = [], tuple(replace(c, sparse=False) if c.sparse else c for c in choices)
    return SparseModel(rewrite(read, chosen) if chosen else None, choices, found.refused, costs)


def check_convertible(model: onnx.ModelProto) -> None:
    """Refuse a model that is sparse already, one that is quantized in another form than QDQ, and open sizes.

    Only the batch may be open: kernels are made for one size.

    Raises:
        InputError: Any of these; the operator or the input is named.
    """
    if any(opset.domain == DOMAIN for opset in model.opset_import):
        raise InputError("the model is sparse already", hint="pass the int8 QDQ model it was made from")
    _check_form(model)
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in stored:
            continue
        opened = [i for i, dim in enumerate(dims) if i and not dim.HasField("dim_value")]
        if opened:
            shown = ", ".join(str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims)
            raise InputError(
                f"input '{value.name}' has open sizes: [{shown}]",
                hint="only the batch may be open; export the model for one size",
            )


def _check_form(model: onnx.ModelProto) -> None:
    used = {node.op_type: None for node in every_node(model)}
    dynamic = [op for op in used if op.startswith("DynamicQuantize") or op in ("ConvInteger", "MatMulInteger")]
    fused = [op for op in used if op in ("QGemm", "QAttention") or op.startswith("QLinear")]
    stored = [op for op in used if op in ("DequantizeLinear", "MatMulNBits") and "QuantizeLinear" not in used]
    if dynamic or fused or stored:
        what = f"in its weights alone ({stored[0]})" if stored else f"dynamically ({dynamic[0]})" if dynamic else ""
        what = what or f"in the operator-oriented form ({fused[0]})"
        raise InputError(
            f"the model is quantized {what}, and only a QDQ model or one in fp32 can be made sparse",
            hint="give the fp32 model that it was made from: it is quantized here",
        )
