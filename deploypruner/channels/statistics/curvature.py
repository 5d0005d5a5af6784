"""Second-order evidence by Hessian-vector products: a gradient pass that is differentiated once more per probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from deploypruner.channels.statistics.passes import BatchPart, Passes, checked, differentiate
from deploypruner.graph.execute.gates import gated
from deploypruner.graph.inputs import as_arguments, call
from deploypruner.graph.labels.channel_rows import Evidence
from deploypruner.records import ChannelEvidence

# How much more than a forward pass a gradient holds that can be differentiated again.
_DOUBLE = 4.0


class WeightCurvature:
    """Collects the diagonal of the Hessian of the mean loss: the mean of v * (H v) over random signs v.

    Args:
        passes: The model.
        probes: Vectors v per minibatch.
    """

    holds = _DOUBLE

    def __init__(self, passes: Passes, probes: int) -> None:
        self._passes, self._probes, self._count = passes, probes, 0
        self._total = {name: torch.zeros_like(w, requires_grad=False) for name, w in passes.weights.items()}

    def add(self, number: int, parts: Sequence[BatchPart]) -> None:
        """One minibatch.

        Raises:
            InputError: A loss that is not finite, or a model without a second derivative.
        """
        weights = self._passes.weights
        self._count += 1
        with _twice_differentiable():
            for part in parts:
                loss = self._passes.loss(part, call(self._passes.module, part.inputs))
                checked(loss.item(), number)
                grads = differentiate(loss, list(weights.values()), again=True)
                for found in _probed(self._passes, grads, list(weights.values()), self._probes):
                    for total, row in zip(self._total.values(), found, strict=True):
                        if row is not None:
                            total.add_(row, alpha=1 / self._probes)

    def evidence(self) -> Evidence:
        """The diagonal, averaged over minibatches."""
        return Evidence(curvature={name: (t / self._count).float().cpu() for name, t in self._total.items()})


class GateCurvature:
    """Collects first and second derivatives of the loss with respect to one gate per channel.

    Args:
        passes: The model.
        probes: Vectors v per minibatch.
    """

    holds = _DOUBLE

    def __init__(self, passes: Passes, probes: int) -> None:
        self._passes, self._probes = passes, probes
        groups, device = passes.graph.groups, passes.device
        self._open = {g.id: torch.ones(g.size, device=device, requires_grad=True) for g in groups}
        self._total = {g.id: torch.zeros(g.size, device=device) for g in groups}
        self._first: dict[str, list[Tensor]] = {g.id: [] for g in groups}

    def add(self, number: int, parts: Sequence[BatchPart]) -> None:
        """One minibatch.

        Raises:
            InputError: A loss that is not finite, or a model without a second derivative.
        """
        passes, gates = self._passes, self._open
        if not gates:
            return
        fixed = {name: w.detach() for name, w in passes.weights.items()}
        first = {group_id: torch.zeros_like(z, requires_grad=False) for group_id, z in gates.items()}
        with _twice_differentiable():
            for part in parts:
                args, kwargs = as_arguments(part.inputs)
                replaced = gated(passes.graph, fixed, gates)
                loss = passes.loss(part, functional_call(passes.module, replaced, args, kwargs))
                checked(loss.item(), number)
                grads = differentiate(loss, list(gates.values()), again=True)
                for sums, grad in zip(first.values(), grads, strict=True):
                    if grad is not None:
                        sums += grad.detach()
                for found in _probed(passes, grads, list(gates.values()), self._probes):
                    for total, row in zip(self._total.values(), found, strict=True):
                        if row is not None:
                            total.add_(row, alpha=1 / self._probes)
        for group_id, sums in first.items():
            self._first[group_id].append(sums.cpu())

    def evidence(self) -> Evidence:
        """Per minibatch for the first derivative, averaged for the second."""
        found = {}
        for group_id, rows in self._first.items():
            curvature = (self._total[group_id] / len(rows)).cpu()
            found[group_id] = ChannelEvidence(gate=torch.stack(rows), gate_curvature=curvature)
        return Evidence(channels=found)


def _probed(
    passes: Passes, grads: Sequence[Tensor | None], variables: Sequence[Tensor], probes: int
) -> Iterator[list[Tensor | None]]:
    """Yield v * (H v) for each probe; None where the gradient does not depend on a variable."""
    live = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
    for probe in range(probes if live else 0):
        signs = {i: passes.signs(variables[i]) for i in live}
        along = torch.stack([(g * signs[i]).sum() for i, g in enumerate(grads) if g is not None and i in signs]).sum()
        rows = differentiate(along, [variables[i] for i in live], keep=probe < probes - 1, what="second derivative")
        found: list[Tensor | None] = [None] * len(variables)
        for i, row in zip(live, rows, strict=True):
            found[i] = None if row is None else row * signs[i]
        yield found


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Compute what has no second derivative in torch by operators that have one."""
    with sdpa_kernel(SDPBackend.MATH), _PlainHardSigmoid():
        yield


class _PlainHardSigmoid(TorchFunctionMode):
    """relu6(x + 3) / 6, written out."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "").partition(".")[0].rstrip("_") == "hardsigmoid":
            return (args[0] / 6 + 0.5).clamp(0, 1)
        return func(*args, **kwargs)
