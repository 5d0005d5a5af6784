"""Batch-norm statistics set anew while the network computes what it computed: scale and shift take up the change.

After reconstruction the weights fit the statistics that were in use. Measuring those anew, as `batchnorm` does, would
undo part of the solution; leaving them would let training begin from statistics that no batch has. So the statistics
become those of the data, and the function in evaluation mode stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from deploypruner.errors import InputError
from deploypruner.graph.inputs import call
from deploypruner.train.batches import Batch
from deploypruner.train.batchnorm import check_finite, momenta_of
from deploypruner.train.modes import device_of, evaluating

_FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ATEN = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")


@dataclass
class _Norm:
    """One batch norm and the sums of what reached it."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    eps: float
    means: Tensor
    variances: Tensor
    count: int = 0

    def add(self, x: Tensor) -> None:
        """Take in one call's input."""
        values = x.detach().transpose(0, 1).flatten(1).double()
        self.means += values.mean(1)
        self.variances += values.var(1)  # unbiased, as running statistics are
        self.count += 1

    def renew(self) -> None:
        """Set the statistics and let scale and shift take up the change.

        weight' = weight sqrt(var' + eps) / sqrt(var + eps), bias' = bias + weight (mean' - mean) / sqrt(var + eps).
        """
        mean, var = self.means / self.count, self.variances / self.count
        slope = self.weight.double() / (self.var.double() + self.eps).sqrt()
        self.bias.add_((slope * (mean - self.mean.double())).to(self.bias.dtype))
        self.weight.copy_(slope * (var + self.eps).sqrt())
        self.mean.copy_(mean)
        self.var.copy_(var)


class _Watching(TorchFunctionMode):
    """Records the input of every batch norm that uses one of the given running means."""

    def __init__(self, means: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: dict[int, _Norm | None] = {id(mean): None for mean in means}
        self.readers: Counter[int] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "").partition(".")[0] == "batch_norm":
            names = _FUNCTIONAL if func is F.batch_norm else _ATEN
            self._add({"eps": 1e-5, "training": False, **dict(zip(names, args, strict=False)), **(kwargs or {})})
        return func(*args, **(kwargs or {}))

    def _add(self, given: dict[str, Any]) -> None:
        mean, weight, bias = (given.get(name) for name in ("running_mean", "weight", "bias"))
        if mean is None or id(mean) not in self.found or given["training"] or weight is None or bias is None:
            return
        norm = self.found[id(mean)]
        if norm is None:
            zero = torch.zeros_like(mean, dtype=torch.float64)
            var, eps = given["running_var"], float(given["eps"])
            norm = self.found[id(mean)] = _Norm(weight, bias, mean, var, eps, zero, zero.clone())
            self.readers.update((id(weight), id(bias)))
        norm.add(given["input"])


@torch.no_grad()
def renormalise_batchnorm(module: nn.Module, batches: Iterable[Batch], *, max_batches: int) -> int:
    """Set running means and variances to those of the data, and change scale and shift so that nothing else changes.

    In evaluation mode the outputs stay what they were, to rounding. The statistics are the averages over batches of
    what reaches each layer in evaluation mode, so that training mode computes the same function but for the
    differences between batches. Layers without scale or shift, with frozen ones or ones that two layers share, and
    layers that never update their statistics, stay as they are; so do the mode and torch's random state.

    Args:
        module: With batch norms as modules or as calls in a traced graph.
        batches: (inputs, labels or None); labels are not looked at.
        max_batches: How many to use, >= 1.

    Returns:
        The number of batch-norm layers whose statistics were set.

    Raises:
        InputError: No batch, or statistics that are not finite; nothing is changed then.
    """
    chosen = [tuple(x.to(device_of(module)) for x in inputs) for inputs, _ in islice(batches, max_batches)]
    if not chosen:
        raise InputError("there is no batch to measure batch-norm statistics on", hint="pass calibration data")
    buffers = dict(module.named_buffers())
    means = {name: buffers[name] for name in momenta_of(module, chosen[0]) if name.endswith("running_mean")}
    with evaluating(module), _Watching(means.values()) as watching:
        for inputs in chosen:
            call(module, inputs)
    renewed = 0
    seen = {name: watching.found[id(mean)] for name, mean in means.items()}
    check_finite({name: norm.means + norm.variances for name, norm in seen.items() if norm is not None})
    for name, norm in seen.items():
        if norm is None or not _own(norm, watching.readers):
            continue
        norm.renew()
        counter = buffers.get(name.removesuffix("running_mean") + "num_batches_tracked")
        if counter is not None:
            counter.fill_(len(chosen))
        renewed += 1
    return renewed


def _own(norm: _Norm, readers: Counter[int]) -> bool:
    """May scale and shift change: trained, and nobody else's?"""
    return all(p.requires_grad and readers[id(p)] == 1 for p in (norm.weight, norm.bias))
