"""Data types that a graph takes from its model: those that change when the model is run in another precision.

Code that says `dtype=x.dtype` is exported with the one that happened to be there, and so is code that means it
(`x.float()` before a softmax). So the model is run once more in another precision, on the meta device where nothing
is computed, and the calls that then ask for another data type are those that follow. Calls are told apart by their
line of code and their order in it. Devices need no such care: a graph lives where its weights live.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from re import findall
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from deploypruner.graph.execute.device_moves import FOLLOWS, kind_of
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, call, map_tensors
from deploypruner.graph.nodes import arguments

Line = tuple[str, int]

_TORCH = str(Path(torch.__file__).parent)
_CASTS = {
    torch.Tensor.float: torch.float32,
    torch.Tensor.double: torch.float64,
    torch.Tensor.half: torch.float16,
    torch.Tensor.bfloat16: torch.bfloat16,
}


def mark_followers(graph: Graph, model: nn.Module, inputs: Inputs, *, training: bool = False) -> None:
    """Mark the calls of `graph` whose data type is the model's own.

    Args:
        graph: Exported from the model; its calls are marked.
        model: It is not changed.
        inputs: What it runs on.
        training: Mode the graph was exported in.
    """
    kind, _ = kind_of(model)
    asking = [node for node in graph.nodes if _asked(node) is not None]
    if kind is None or all(_asked(node) != kind for node in asking):
        return
    other = torch.float32 if kind == torch.bfloat16 else torch.bfloat16
    heard = _heard(model, inputs, other, training)
    here: dict[Line, list[Node]] = defaultdict(list)
    for node in asking:
        here[_line(node)].append(node)
    for line, nodes in here.items():
        said = heard.get(line, [])
        if len(said) != len(
            nodes
        ):  # calls that tell nothing may be gone from the graph: the line has to be of one mind
            said = said[:1] * len(nodes) if len(set(said)) == 1 else []
        for node, dtype in zip(nodes, said, strict=False):
            if _asked(node) == kind and dtype == other:
                node.meta[FOLLOWS] = True


def _asked(node: Node) -> torch.dtype | None:
    """The floating-point data type a call asks for."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    dtype = arguments(node).get("dtype")
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None


def _line(node: Node) -> Line:
    frames = findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    frames = [f for f in frames if not f[0].startswith(_TORCH)]
    return (frames[-1][0], int(frames[-1][1])) if frames else ("", 0)


def _heard(model: nn.Module, inputs: Inputs, dtype: torch.dtype, training: bool) -> dict[Line, list[torch.dtype]]:
    """Line of code -> the data types it asks for in this precision, in order; empty where the model does not run."""
    for device in ("meta", None):
        listener, moved = _TypeListener(), sharing_copy(model)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                moved.to(device=device, dtype=dtype).train(training)
                given = map_tensors(lambda t, d=device: _moved(t, d or t.device, dtype), inputs)  # type: ignore[misc]
                with listener:
                    call(moved, given)
        except Exception:  # noqa: BLE001 - a model may not run there, whatever it then raises
            continue
        return listener.lines
    return {}


def _moved(tensor: Tensor, device: Any, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


class _TypeListener(TorchFunctionMode):
    """Hears which floating-point data types are asked for, and where."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Line, list[torch.dtype]] = defaultdict(list)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = pytree.tree_leaves((args, kwargs or {}))
        asked = [a for a in leaves if isinstance(a, torch.dtype) and a.is_floating_point]
        asked += [_CASTS[func]] if func in _CASTS else []
        if asked:
            self.lines[_caller()].append(asked[0])
        return func(*args, **(kwargs or {}))


def _caller() -> Line:
    """The innermost line outside torch."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_TORCH):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno
