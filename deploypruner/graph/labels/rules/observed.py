"""Operators without a rule of their own: what they do along each axis is found out by running them.

An operator follows an axis when leaving indices out of its inputs leaves the same indices out of one axis of its
output and changes nothing else: elementwise work, a batch axis, the channels of a resampling. It sums over an axis
when its output does not depend on the order along it, and takes any length: a distance, a norm. Along every other
axis positions are mixed (a cumulative sum, a transform), and nothing may be removed. The operator is run in float64
on arguments as the example inputs make them, with noise; whatever cannot be run so is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from deploypruner.graph.execute.float64_interpreter import writes
from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.rules import find
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import is_tensor, op_name, shape_of

# One axis of each of some arguments.
Together = dict[Node, int]

# Which arguments share an axis is found soon, unless many of the axes have one length.
_MOST_TRIED = 200
_EXACT = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}


@dataclass(frozen=True)
class Effect:
    """What leaving out indices of some input axes does to one output.

    Args:
        axis: Of the output, from which the same indices go; None where the axis is summed over.
    """

    axis: int | None


def can_be_observed(node: Node) -> bool:
    """Is this an operator without a rule that checks what it is given? Kernels of other libraries may crash."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or find(node) is not None:
        return False
    return target.namespace == "aten" and not op_name(node).startswith(("_", "mkldnn", "quantized"))


def observe(tracing: Tracing, node: Node, values: dict[Node, Any]) -> Any:
    """Labels of the outputs of an operator nobody wrote a rule for; None where it could not be run.

    Args:
        tracing: Learns which axes go together and which never go.
        node: A call.
        values: Its tensor arguments, and sizes that were computed.
    """
    trial = _Trial(node, values)
    if not trial.runs:
        return None
    found = node.meta["val"]
    outputs = [_inert(tracing, t, node) for t in ([found] if isinstance(found, Tensor) else found)]
    settled: set[tuple[Node, int]] = set()
    summed: list[Labels] = []
    for argument in trial.tensors:
        for axis, labels in enumerate(tracing.axes(argument)):
            if (argument, axis) in settled or tracing.atoms.live(labels) is None:
                continue
            together, effects = trial.follow(argument, axis)
            if not together:
                tracing.freeze(labels, f"{op_name(node)} depends on every position along this axis")
                continue
            settled |= set(together.items())
            shared = labels
            for other, place in together.items():
                why = f"{op_name(node)} takes it together with an axis of fixed length"
                shared = tracing.unify(shared, tracing.axes(other)[place], why)
            for output, effect in zip(outputs, effects, strict=True):
                if effect.axis is None:
                    summed.append(shared)
                else:
                    output[effect.axis] = shared
    tracing.statistic(node, summed)
    return outputs[0] if isinstance(found, Tensor) else outputs


def _inert(tracing: Tracing, tensor: Tensor, node: Node) -> list[Labels]:
    axes = [tracing.atoms.fresh(int(size)) for size in tensor.shape]
    for labels in axes:
        tracing.freeze(labels, f"the output of {op_name(node)} has a fixed length here")
    return axes


class _Trial:
    """One operator, to be run on parts of its arguments."""

    def __init__(self, node: Node, values: dict[Node, Any]) -> None:
        self.node = node
        self.values = values
        self.tensors = [a for a in dict.fromkeys(node.all_input_nodes) if is_tensor(a) and a in values]
        # Only a plain result can be put back among zeros, where part of it is a statistic.
        self.may_sum = not writes(node) and bool(node.args) and is_tensor(node.args[0])
        self.whole = self._first_finite()
        self.runs = self.whole is not None and self._same(self.whole, self.run({}))

    def follow(self, argument: Node, axis: int) -> tuple[Together, list[Effect]]:
        """Axes of other arguments that must shrink with this one, itself included, and what that does; or nothing."""
        if shape_of(argument)[axis] < 2:
            return {}, []  # one channel that was picked out cannot go without the axis
        for together in islice(self._ways(argument, axis), _MOST_TRIED):
            effects = self._effects(together)
            if effects is not None:
                return together, effects
        return {}, []

    def run(self, chosen: dict[Node, tuple[int, Tensor]]) -> list[Tensor] | None:
        """Outputs with these arguments cut to some indices of an axis; None where the operator refuses."""

        def value(node: Node) -> Any:
            held = self.values[node]
            if not isinstance(held, Tensor):
                return held
            return held.index_select(*chosen[node]) if node in chosen else held.clone()

        args, kwargs = torch.fx.node.map_arg((self.node.args, self.node.kwargs), value)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                result = self.node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # noqa: BLE001 - an operator says in many ways that it cannot take this
            return None
        leaves = pytree.tree_leaves(result)
        return leaves if all(isinstance(leaf, Tensor) for leaf in leaves) else None

    def _first_finite(self) -> list[Tensor] | None:
        """Outputs on the first arguments that lie in the operator's domain; these become the arguments."""
        given, generator = self.values, torch.Generator().manual_seed(0)
        for make in (_noisy, _positive, lambda value, _: value):
            self.values = {node: make(value, generator) for node, value in given.items()}
            outputs = self.run({})
            if outputs and all(t.numel() and bool(t.isfinite().all()) for t in outputs):
                return outputs
        return None

    def _ways(self, argument: Node, axis: int) -> Iterator[Together]:
        """The axis alone, with all axes that face it as in broadcasting, then with ever more others of its length."""
        shape = shape_of(argument)
        size, back = shape[axis], axis - len(shape)
        places: dict[Node, list[int]] = {}
        for other in self.tensors:
            if other is not argument:
                alike = [i for i, n in enumerate(shape_of(other)) if n == size]
                facing = len(shape_of(other)) + back
                places[other] = sorted(alike, key=lambda i, at=facing: abs(i - at))  # type: ignore[misc]
        fitting = [other for other, found in places.items() if found]
        yield {argument: axis}
        yield {argument: axis, **{other: places[other][0] for other in fitting}}
        for count in range(1, len(fitting) + 1):
            for others in combinations(fitting, count):
                for chosen in product(*(places[other] for other in others)):
                    yield {argument: axis, **dict(zip(others, chosen, strict=True))}

    def _effects(self, together: Together) -> list[Effect] | None:
        """What shrinking these axes does to each output; None where it mixes positions."""
        node, axis = next(iter(together.items()))
        size, generator = shape_of(node)[axis], torch.Generator().manual_seed(1)
        some = torch.randperm(size, generator=generator)[: (size + 1) // 2].sort().values
        found: list[list[Effect]] = []
        for kept in (some, torch.arange(1, size), torch.arange(size - 1)):
            cut = self.run({n: (a, kept) for n, a in together.items()})
            effects = None if cut is None else self._compared(cut, kept)
            if effects is None or (found and effects != found[0]):
                return None
            found.append(effects)
        if any(effect.axis is None for effect in found[0]):
            order = torch.randperm(size, generator=generator)
            mixed = self.run({n: (a, order) for n, a in together.items()})
            if mixed is None or not self.may_sum or not self._unordered(mixed, order, found[0]):
                return None
        return found[0]

    def _compared(self, cut: list[Tensor], kept: Tensor) -> list[Effect] | None:
        assert self.whole is not None, "an operator that does not run is not looked at"
        effects = []
        for part, whole in zip(cut, self.whole, strict=True):
            shorter = [i for i, (a, b) in enumerate(zip(part.shape, whole.shape, strict=True)) if a != b]
            if len(shorter) > 1:
                return None
            if shorter and not self._same([part], [_select(whole, shorter[0], kept)]):
                return None
            effects.append(Effect(shorter[0] if shorter else None))
        return effects

    def _unordered(self, mixed: list[Tensor], order: Tensor, effects: list[Effect]) -> bool:
        """In another order: are sums the same, and everything else in that order?"""
        assert self.whole is not None, "an operator that does not run is not looked at"
        wanted = [
            whole if effect.axis is None else _select(whole, effect.axis, order)
            for whole, effect in zip(self.whole, effects, strict=True)
        ]
        return self._same(mixed, wanted)

    @staticmethod
    def _same(left: list[Tensor], right: list[Tensor] | None) -> bool:
        return right is not None and all(
            a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, **_EXACT)  # type: ignore[arg-type]
            for a, b in zip(left, right, strict=True)
        )


def _select(whole: Tensor, axis: int, kept: Tensor) -> Tensor:
    return whole.index_select(axis, kept) if int(kept.max()) < whole.shape[axis] else whole[:0]


def _noisy(value: Any, generator: torch.Generator) -> Any:
    """Example values with noise of their own size; integers, flags and sizes as they are."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    spread = float(value.abs().std(correction=0)) if value.numel() > 1 else 0.0
    return value + (spread or 1.0) * torch.randn(value.shape, generator=generator, dtype=value.dtype)


def _positive(value: Any, generator: torch.Generator) -> Any:
    """Numbers from 0.1 to 1 in the place of floats."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return 0.1 + 0.9 * torch.rand(value.shape, generator=generator, dtype=value.dtype)
