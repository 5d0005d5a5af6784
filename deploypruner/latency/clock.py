"""The one place where a build learns how long anything takes, so that a test can say it instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

from deploypruner.device.described import described
from deploypruner.device.machine import Machine
from deploypruner.device.reach import reach
from deploypruner.latency.build import build_latency_model
from deploypruner.latency.kernel_rates import KernelRates, kernel_rates
from deploypruner.latency.layer_times import LayerRun, layer_times
from deploypruner.latency.model import LatencyModel
from deploypruner.latency.probes import Profile, profile
from deploypruner.latency.sparse_costs import MeasuredCosts, measure_costs
from deploypruner.measure import Measured, time_artifacts
from deploypruner.measure.elsewhere import check_measurable
from deploypruner.train.budget import time_step


@dataclass(frozen=True)
class Clock:
    """Answers every question about time; the defaults ask this machine.

    Args:
        monotonic: Seconds since some moment.
        artifacts: As `measure.time_artifacts`: files side by side.
        profile: As `latency.profile`: the operations of one file.
        layer_times: As `latency.layer_times.layer_times`: layers of several mixes of int8 and float.
        latency_model: As `latency.build_latency_model`: any plan of one model.
        kernel_rates: As `latency.kernel_rates.kernel_rates`: the sparse kernels.
        layer_costs: As `latency.sparse_costs.measure_costs`: layers dense and sparse.
        training_step: As `train.budget.time_step`: seconds of one step of fine-tuning, here.
        machine: Whose time all but `monotonic` and `training_step` is.
    """

    monotonic: Callable[[], float] = time.monotonic
    artifacts: Callable[..., Measured] = time_artifacts
    profile: Callable[..., Profile] = profile
    layer_times: Callable[..., list[dict[str, LayerRun]]] = layer_times
    latency_model: Callable[..., LatencyModel] = build_latency_model
    kernel_rates: Callable[..., KernelRates] = kernel_rates
    layer_costs: Callable[..., MeasuredCosts] = measure_costs
    training_step: Callable[..., float] = time_step
    machine: Machine = field(default_factory=Machine)


_MACHINE = Clock()
_CURRENT = ContextVar("clock", default=_MACHINE)


def current_clock() -> Clock:
    """What a build that is begun now goes by."""
    return _CURRENT.get()


@contextmanager
def using(clock: Clock) -> Iterator[None]:
    """Let builds that are begun in this block go by `clock`."""
    token = _CURRENT.set(clock)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def timed_on(
    name: str, *, runtimes: Sequence[str] = (), say: Callable[[str], None] = lambda line: None
) -> Iterator[Clock]:
    """Let builds that are begun in this block go by the time of a machine; of this one, by the current clock.

    Args:
        name: `cpu`, ssh://user@host or a name in targets.toml.
        runtimes: That are to be measured there; () for those of the default ones that it has.
        say: Called with a line where the connection is lost on the way, and where it is back.

    Raises:
        RecipeError: No such target.
        InputError: A runtime that is not measured on another machine.
        DeviceError: The machine cannot be reached, or lacks something.
    """
    target = described(name)
    if target.address is None:
        yield current_clock()
        return
    with reach(target, say=say) as device:
        machine = Machine(device, target)
        check_measurable(machine, runtimes)
        clock = Clock(
            artifacts=partial(time_artifacts, device=device),
            profile=partial(profile, device=device),
            layer_times=partial(layer_times, device=device),
            latency_model=partial(build_latency_model, machine=machine),
            machine=machine,
        )
        with using(clock):
            yield clock
