"""Dropout inside fused attention, which an export in evaluation mode writes down as zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deploypruner.graph.inputs import Inputs, call
from deploypruner.graph.module import DROPOUT
from deploypruner.graph.nodes import op_name
from deploypruner.graph.reference import seeded


def restore_attention_dropout(graph: GraphModule, model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Note on every fused attention of `graph` the dropout that `model` asks for in training.

    The model is run once in training mode, and only where it has both attention and dropout.

    Args:
        graph: Captured from the model; its nodes are annotated.
        model: A copy that may be run and whose buffers may change; it is left in evaluation mode.
        inputs: What it runs on.

    Returns:
        A remark where that could not be found out.
    """
    calls = [node for node in graph.graph.nodes if op_name(node) == "scaled_dot_product_attention"]
    if not calls or not _has_dropout(model):
        return ()
    listener = _Listener()
    model.train()
    try:
        with torch.no_grad(), seeded(inputs, 0), listener:
            call(model, inputs)
    except Exception:  # noqa: BLE001 - a training forward may want labels, or more than one sample
        listener.heard.clear()
    finally:
        model.eval()
    if len(listener.heard) != len(calls):
        return ("dropout inside attention stays off in training: the model's own could not be found out",)
    for node, probability in zip(calls, listener.heard, strict=True):
        if probability > 0:
            node.meta[DROPOUT] = probability
    return ()


def _has_dropout(model: nn.Module) -> bool:
    """Is any number above zero called a dropout somewhere in the model?"""
    for module in model.modules():
        for name, value in vars(module).items():
            named = "drop" in name.lower() or (name == "p" and isinstance(module, nn.modules.dropout._DropoutNd))
            if named and isinstance(value, float) and value > 0:
                return True
    return False


class _Listener(TorchFunctionMode):
    """Hears the dropout of every fused attention, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.heard.append(float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)))
        return func(*args, **kwargs)
