"""The user's own model as the judge of a traced graph: what it returns, and in whose words it fails."""

from __future__ import annotations

import dataclasses
import functools
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.errors import TraceError
from deploypruner.graph.inputs import Inputs, call, described, tensors
from deploypruner.graph.largest_gap import largest_gap, magnitude
from deploypruner.graph.recurrent import CheckedStates
from deploypruner.records import Check

# Both run the same operators; only a cache or a fused path of the original may round differently.
_RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-4}
_OURS, _TORCH = (str(Path(p).parent) for p in (__file__, torch.__file__))
_PLAIN = (Tensor, int, float, complex, bool, str, type(None))


class Reference:
    """A copy of the model in evaluation mode.

    Args:
        module: It is run, so its buffers must be its own.

    Attributes:
        left_out: Types of what the model returns that no graph can hold.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.left_out: tuple[str, ...] = ()

    def outputs(self, inputs: Inputs, seed: int = 0) -> list[Tensor]:
        """The tensors the model returns, in order.

        Raises:
            TraceError: It raises, or returns no tensor.
        """
        try:
            output = run(self.module, inputs, seed)
        except Exception as error:  # whatever the user's forward raises
            raise TraceError(
                f"the model does not run on example inputs of shape {described(inputs)}: {said(error)}",
                hint=_misfit(self.module, inputs),
            ) from error
        register_dataclasses(output)
        leaves = pytree.tree_leaves(output)
        found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not found:
            raise TraceError(
                f"the model returned {type(output).__name__}, which holds no tensor",
                hint="return a tensor, or a tuple, dict or dataclass that has one",
            )
        self.left_out = tuple(dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _PLAIN)))
        return found

    def compare(self, got: list[Tensor], wanted: list[Tensor]) -> Check:
        """Does the graph compute what the model does? Every output, relative to the largest value."""
        kind, relative = self._precision(wanted)
        name = f"traced graph = model ({str(kind).removeprefix('torch.')})"
        if [t.shape for t in got] != [t.shape for t in wanted]:
            shapes = " and ".join(str([list(t.shape) for t in side]) for side in (got, wanted))
            return Check(name, float("nan"), 0.0, False, f"shapes {shapes}")
        tolerance = relative * max(map(magnitude, wanted), default=0.0)
        gap = max((largest_gap(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
        return Check(name, gap, tolerance, gap <= tolerance)

    def relative(self, wanted: list[Tensor]) -> float:
        """By which part of the largest value these may differ."""
        return self._precision(wanted)[1]

    def _precision(self, wanted: list[Tensor]) -> tuple[torch.dtype, float]:
        kinds = [t.dtype for t in (*self.module.parameters(), *wanted) if t.is_floating_point()]
        kind = max(kinds, key=lambda d: torch.finfo(d).eps, default=torch.float32)
        return kind, _RELATIVE.get(kind, 16 * torch.finfo(kind).eps)

    def is_random(self, inputs: Inputs) -> bool:
        """Does the model return something else on the same inputs after another seed?"""
        first, second = (self.outputs(inputs, seed) for seed in (0, 1))
        return not self.compare(first, second).passed


def without_opaque_outputs(module: nn.Module) -> None:
    """Return None in the place of every object that a graph cannot hold, in place; the signature stays."""
    forward = module.forward

    @functools.wraps(forward)
    def _plain(*args: Any, **kwargs: Any) -> Any:
        return pytree.tree_map(lambda leaf: leaf if isinstance(leaf, _PLAIN) else None, forward(*args, **kwargs))

    module.forward = _plain


def register_dataclasses(value: Any) -> None:
    """Let torch look into the dataclasses inside inputs or outputs, as it does into tuples and dicts."""
    while True:
        opaque = {type(leaf) for leaf in pytree.tree_leaves(value) if not isinstance(leaf, _PLAIN)}
        new = [kind for kind in opaque if dataclasses.is_dataclass(kind)]
        if not new:
            return
        for kind in new:
            pytree.register_dataclass(kind)


def run(module: nn.Module, inputs: Inputs, seed: int = 0) -> Any:
    """What a model or a graph returns; these inputs may be of sizes it was not traced for.

    Raises:
        Exception: Whatever forward or an operator raises.
    """
    with torch.no_grad(), seeded(inputs, seed), CheckedStates():
        return call(module, inputs)


@contextmanager
def seeded(inputs: Inputs, seed: int) -> Iterator[None]:
    """Draw random numbers of torch, NumPy and Python from `seed`, and leave the caller's sequences alone."""
    devices = sorted({t.device.index or 0 for t in tensors(inputs) if t.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def said(error: BaseException) -> str:
    """What an exception says in one line, and the user's line that raised it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    line = _users(traceback.extract_tb(error.__traceback__))
    return f"{text} (at {line})" if line else text


def users_line() -> str:
    """The user's line that is being run, "" outside of any."""
    return _users(traceback.extract_stack())


def _users(stack: traceback.StackSummary) -> str:
    frames = [f for f in stack if not f.filename.startswith((_OURS, _TORCH, "<"))]
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else ""


def _misfit(module: nn.Module, inputs: Inputs) -> str:
    """What is wrong with the inputs, as far as it shows without running anything."""
    weights, given = [*module.parameters()], tensors(inputs)
    devices = {str(t.device) for t in weights}
    strange = [str(t.device) for t in given if str(t.device) not in devices]
    if devices and strange:
        return f"the model is on {', '.join(sorted(devices))} and an input on {strange[0]}; move one to the other"
    kinds = {t.dtype for t in weights if t.is_floating_point()}
    other = [t.dtype for t in given if t.is_floating_point() and t.dtype not in kinds]
    if kinds and other:
        theirs, ours = (str(d).removeprefix("torch.") for d in (other[0], next(iter(kinds))))
        return f"the weights are {ours} and an input is {theirs}; give {ours}, or integers where indices are meant"
    return "pass example inputs of the shape, dtype and number the model takes"
