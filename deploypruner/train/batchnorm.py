"""Batch-norm statistics measured anew: pruning changes what reaches every later layer.

Works on `nn.BatchNorm*` modules and on batch-norm calls inside a traced graph alike, because it looks only at
the buffers: a layer with momentum p that starts from 0 holds p * statistic after one batch in training mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploypruner.errors import InputError
from deploypruner.graph.inputs import call
from deploypruner.train.batches import Batch
from deploypruner.train.modes import device_of, mode_kept

_DROPOUT = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
}
_FAR = 2.0**20  # a start value so large that (1 - p) shows to float32 precision, whatever the statistic


class _WithoutDropout(TorchFunctionMode):
    """Dropout passes its input on: it would widen the variances beyond those of inference."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in _DROPOUT:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


def reestimate_batchnorm(module: nn.Module, batches: Iterable[Batch], *, max_batches: int) -> int:
    """Replace running means and variances by the plain average of each batch's own.

    The result is that of `nn.BatchNorm2d(momentum=None)` after a reset: mean of the batch means, and mean of
    the unbiased batch variances. Parameters, the mode and torch's random state stay as they were; dropout is
    off; `num_batches_tracked` becomes the number of batches. Stochastic depth written by hand is not switched off.

    Args:
        module: Anything that updates buffers called `running_mean` and `running_var` in training mode. Layers
            that do not update them (frozen batch norm) keep their statistics.
        batches: (inputs, labels or None); labels are not looked at.
        max_batches: How many to use, >= 1.

    Returns:
        The number of batch-norm layers that were measured.

    Raises:
        InputError: No batch, or statistics that are not finite; the module's own are then kept.
    """
    assert max_batches >= 1, f"max_batches must be >= 1, got {max_batches}"
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    device = device_of(module)
    sums: dict[str, Tensor] = {}
    momenta: dict[str, float] = {}
    count = 0
    with mode_kept(module), _kept(module, before), torch.no_grad(), torch.random.fork_rng(), _WithoutDropout():
        module.train()
        for inputs, _ in islice(batches, max_batches):
            placed = tuple(x.to(device) for x in inputs)
            if count == 0:
                momenta = _momenta(module, placed, before)
                if not momenta:
                    return 0
                sums = {name: torch.zeros_like(before[name], dtype=torch.float64) for name in momenta}
            after = _after_one_batch(module, placed, before, start=dict.fromkeys(momenta, 0.0))
            for name, momentum in momenta.items():
                sums[name] += after[name].double() / momentum
            count += 1
    if count == 0:
        raise InputError("there is no batch to measure batch-norm statistics on", hint="pass calibration data")
    measured = {name: (total / count).to(before[name].dtype) for name, total in sums.items()}
    check_finite(measured)
    tracked = {n: torch.full_like(before[n], count) for n in map(_counter, measured) if n in before}
    _write(module, measured | tracked)
    return len({name.rpartition(".")[0] for name in measured})


def _momenta(module: nn.Module, inputs: tuple[Tensor, ...], before: dict[str, Tensor]) -> dict[str, float]:
    """Share of the batch in each running statistic that training mode updates, by buffer name.

    From the same batch and two start values 0 and F: end_F - end_0 = (1 - p) F, channel by channel.
    """
    names = [name for name in before if name.rpartition(".")[2] in ("running_mean", "running_var")]
    own = _after_one_batch(module, inputs, before, start={})
    updated = [name for name in names if not torch.equal(own[name], before[name])]
    check_finite({name: own[name] for name in updated})
    low = _after_one_batch(module, inputs, before, start=dict.fromkeys(updated, 0.0))
    high = _after_one_batch(module, inputs, before, start=dict.fromkeys(updated, _FAR))
    kept = {n: float(((high[n].double() - low[n].double()) / _FAR).median()) for n in updated}
    # Momenta are decimal numbers a person wrote; the sixth digit is where float32 ends.
    return {name: round(1 - share, 6) for name, share in kept.items() if round(1 - share, 6) > 0}


def _after_one_batch(
    module: nn.Module, inputs: tuple[Tensor, ...], before: dict[str, Tensor], *, start: dict[str, float]
) -> dict[str, Tensor]:
    """All buffers after one batch that began with the `start` values, and with `before` where there is none.

    The batch counters begin at zero, so that a cumulative average (momentum=None) has p = 1.
    """
    begin = {name: torch.full_like(before[name], value) for name, value in start.items()}
    counters = {n: torch.zeros_like(b) for n, b in before.items() if n.rpartition(".")[2] == "num_batches_tracked"}
    _write(module, before | counters | begin)
    call(module, inputs)
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


@contextmanager
def _kept(module: nn.Module, before: dict[str, Tensor]) -> Iterator[None]:
    try:
        yield
    finally:
        _write(module, before)


def _write(module: nn.Module, values: dict[str, Tensor]) -> None:
    buffers = dict(module.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            buffers[name].copy_(value)


def _counter(name: str) -> str:
    owner, dot, _ = name.rpartition(".")
    return f"{owner}{dot}num_batches_tracked"


def momenta_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Running statistics that training mode updates -> the share of one batch in them; the module stays as it is."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with mode_kept(module), _kept(module, before), torch.no_grad(), torch.random.fork_rng(), _WithoutDropout():
        module.train()
        return _momenta(module, inputs, before)


def check_finite(statistics: dict[str, Tensor]) -> None:
    """Refuse statistics that are not finite.

    Raises:
        InputError: One is not; names it.
    """
    for name, value in statistics.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"'{name}' is not finite when measured on the calibration data",
                hint="check the inputs for NaN and infinity",
            )
