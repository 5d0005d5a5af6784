"""torch.export without what costs time and says nothing: from a module to a graph module that owns its state."""

from __future__ import annotations

import gc
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.inputs import Inputs, as_arguments, map_tensors
from deploypruner.graph.recurrent import open_sequences

_TORCH = str(Path(torch.__file__).parent)
_STATE = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ}


def export(model: nn.Module, inputs: Inputs, dynamic_shapes: Any = None) -> ExportedProgram:
    """Export to the training IR.

    Args:
        model: In evaluation mode; export may leave fake tensors in its attributes.
        inputs: Not changed; values do not matter.
        dynamic_shapes: As in torch.export, in the structure of the inputs.

    Raises:
        Exception: Whatever the model or torch.export raises.
    """
    # A dynamic export marks the tensors it is given.
    args, kwargs = as_arguments(map_tensors(lambda t: t.detach().view_as(t), inputs))
    # The fused transformer path is opaque to export.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Lazily: the code of the graphs in between is never run.
        with quiet(), _light_stacks(), open_sequences(), _use_lazy_graph_module(True):
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def unlifted(program: ExportedProgram) -> GraphModule:
    """Turn a program made by `export` into a module that owns its state; the program is used up.

    `program.module()` does the same and more, on a copy of everything.
    """
    signature = program.graph_signature
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in signature.output_specs):
        return program.module(check_guards=False)
    graph = program.graph
    state: dict[str, Any] = {}
    for spec, node in zip(signature.input_specs, list(graph.find_nodes(op="placeholder")), strict=True):
        if spec.kind in _STATE:
            assert spec.target is not None, f"input {node.name} holds state without a name"
            constants = spec.target in program.constants
            state[spec.target] = (program.constants if constants else program.state_dict)[spec.target]
            with graph.inserting_before(node):
                read = graph.create_node("get_attr", spec.target)
            read.meta = dict(node.meta)
            node.replace_all_uses_with(read)
            graph.erase_node(node)
    for node in graph.find_nodes(op="get_attr"):  # regions of their own, which only the old module has
        if node.target not in state:
            state[str(node.target)] = get_state(program.graph_module, str(node.target))
    _own_signature(program, graph)
    return GraphModule(state, graph)


def _own_signature(program: ExportedProgram, graph: Graph) -> None:
    """Let the graph take and return the user's own structures; every input goes by position or by name."""
    spec = program.call_spec.in_spec
    entry = program.module_call_graph[0].signature
    assert spec is not None, "an exported program knows its inputs"
    assert entry is not None, "an exported program knows its call"
    names = entry.forward_arg_names or [f"input_{i}" for i in range(len(program.graph_signature.user_inputs))]
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, spec, program.call_spec.out_spec)))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's warnings, log lines and graph dumps from the user: the error or the remark says enough."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def without_collection() -> Iterator[None]:
    """Tracing makes nothing but objects that live: looking through them for garbage is a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _light_stacks() -> Iterator[None]:
    """Record file and line of each call, and not the source text, which is a quarter of the time of an export."""
    if not hasattr(torch.fx.proxy, "CapturedTraceback"):
        yield
        return
    with patch.object(torch.fx.proxy, "CapturedTraceback", _LightStack):
        yield


class _LightStack:
    """In the place of torch's CapturedTraceback while exporting: the frames outside torch."""

    def __init__(self, frames: list[traceback.FrameSummary]) -> None:
        self._frames = frames

    @staticmethod
    def extract() -> _LightStack:
        """The stack of the caller."""
        return _LightStack(
            [
                traceback.FrameSummary(f.f_code.co_filename, line, f.f_code.co_name, lookup_line=False, line="")
                for f, line in traceback.walk_stack(sys._getframe(1))
                if not f.f_code.co_filename.startswith(_TORCH)
            ]
        )

    def summary(self) -> traceback.StackSummary:
        """Outermost call first, as torch's own."""
        return traceback.StackSummary.from_list(self._frames[::-1])
