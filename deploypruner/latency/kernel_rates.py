"""The rates of this machine: what layers cost in the sparse kernels and in OpenVINO's int8, measured once and cached.

`kernel_probes` gives layers, `measure_costs` times them, and non-negative least squares on relative errors finds the
rates of `sparse.cost`. Source: ours.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from deploypruner.atomic import file_sha256, write_json
from deploypruner.caches import default_folder
from deploypruner.device.connection import Device
from deploypruner.device.machine import Machine
from deploypruner.errors import InputError, said_by
from deploypruner.latency.cache import device as timings_device
from deploypruner.latency.kernel_probes import CHAINS, HEAD, TAIL, Chain, probe_feeds, probe_model
from deploypruner.latency.sparse_costs import MeasuredCosts, measure_costs
from deploypruner.measure.kernels import Kernels, kernels_of
from deploypruner.onnx_file import write_onnx
from deploypruner.onnx_graph import read_graph
from deploypruner.reading import read_json
from deploypruner.records import Setting
from deploypruner.scratch import scratch
from deploypruner.sparse.cost import Counts, Rates, border_counts, dense_counts, sparse_counts
from deploypruner.sparse.layer import Layer
from deploypruner.sparse.library import active_target
from deploypruner.sparse.match import match
from deploypruner.sparse.rewrite import c4_name, rewrite

FORMAT = 3
# Targets that pack nm64 into windows: groups of four neighbouring inputs are not what they compute.
_WINDOWED = frozenset({"avx512_vbmi"})
# Median error from which on the timings tell more about other programs than about the kernels.
_BUSY = 0.3

Timings = Sequence[tuple[Counts, float]]


@dataclass(frozen=True)
class KernelRates:
    """Rates of one machine, and how far to trust them.

    Args:
        rates: For `sparse.partition` and the solver.
        sparse_error: Median of |predicted / measured - 1| over layers in the kernels, each predicted without itself.
        dense_error: The same in OpenVINO.
        layers: How many were timed.
        seconds: It took.
        remark: What a user should know about the file they are kept in, "" where it was as expected.
    """

    rates: Rates
    sparse_error: float
    dense_error: float
    layers: int
    seconds: float
    remark: str = ""


def kernel_rates(
    threads: int,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    machine: Machine | None = None,
) -> KernelRates:
    """The rates of a CPU, kernel library, target and number of threads; measured where no file has them.

    Args:
        threads: Of OpenVINO.
        cache: Folder of the files, None for the user's cache folder.
        say: Told if something is measured.
        machine: Whose they are; this one's where None.

    Raises:
        KernelError: The kernels are not built, fit another OpenVINO, or the target cannot run.
        MeasureError: They cannot be timed.
        DeviceError: The machine is lost.
    """
    folder, machine = cache or default_folder(), machine or Machine()
    called = machine.name if machine.elsewhere else "this machine"
    kernels = kernels_of(machine)
    about = _about(threads, kernels, machine)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    name = f"kernels-openvino-int8-{threads}-{digest}.json"
    remark = ""
    if (folder / name).is_file():
        try:
            return _called(_read(folder / name, about), called)
        except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            remark = f"the kernel rates {folder / name} are damaged ({said_by(error)}), so they are measured again"
    say(f"timing the sparse kernels, once for {called}")
    found = _called(measured_rates(threads, kernels=kernels, device=machine.device), called)
    off = max(found.sparse_error, found.dense_error)
    if off > _BUSY:
        remark = f"the kernel rates are {100 * off:.0f} % off what they were fitted to, so {called} is busy; not kept"
        return KernelRates(**{**vars(found), "remark": remark})
    try:
        write_json(folder / name, {"format": FORMAT, "device": about, **asdict(found)})
    except InputError as error:
        remark = f"the kernel rates were not kept: {error.message}"
    return KernelRates(**{**vars(found), "remark": remark})


def _called(found: KernelRates, name: str) -> KernelRates:
    """The same, with the machine as it is called now in their source."""
    return replace(found, rates=replace(found.rates, source=f"rates measured on {name}"))


def measured_rates(
    threads: int,
    chains: Sequence[Chain] = CHAINS,
    *,
    kernels: Kernels | None = None,
    device: Device | None = None,
) -> KernelRates:
    """Time the probes and fit; about ten seconds.

    Args:
        threads: Of OpenVINO.
        chains: The probes.
        kernels: As they run on the machine; those of this one where None.
        device: The machine; this one where None.

    Raises:
        KernelError: As `kernel_rates`.
        MeasureError: As `kernel_rates`.
        DeviceError: As `kernel_rates`.
    """
    kernels = kernels or kernels_of(Machine())
    begin = time.perf_counter()
    model = probe_model(chains)
    graph = read_graph(model)
    layers = [x for x in match(graph.graph).layers if isinstance(x, Layer) and not x.name.endswith((HEAD, TAIL))]
    with scratch() as folder:
        dense, sparse = folder / "dense.onnx", folder / "sparse.onnx"
        write_onnx(model, dense)
        write_onnx(rewrite(graph, layers), sparse)
        costs = measure_costs(dense, sparse, layers, feeds=probe_feeds(chains), threads=threads, device=device)
    # Windows are packed by the library that is loaded here, so they can be counted only where it does as there.
    fitted = fit_rates(layers, costs, packed={kernels.active, active_target()} <= _WINDOWED)
    return KernelRates(**{**vars(fitted), "seconds": time.perf_counter() - begin})


def fit_rates(layers: Sequence[Layer], costs: MeasuredCosts, *, packed: bool = False) -> KernelRates:
    """Rates from timed layers and borders.

    Args:
        layers: Timed.
        costs: What each took.
        packed: As in `Rates`.
    """
    ours = [(sparse_counts(x, packed=packed), costs.sparse_ns[x.name]) for x in layers if x.name in costs.sparse_ns]
    theirs = [(dense_counts(x), costs.dense_ns[x.name]) for x in layers if x.name in costs.dense_ns]
    touched = {c4_name(a): a for x in layers for a in x.touches}
    borders: Timings = [
        (border_counts(touched[name]), ns) for found in (costs.enter_ns, costs.leave_ns) for name, ns in found.items()
    ]
    values: dict[str, Any] = {**non_negative(ours), **non_negative(theirs), **non_negative(borders)}
    rates = Rates(**values, packed=packed, source="rates measured on this machine")
    return KernelRates(rates, left_out(ours), left_out(theirs), len(layers), 0.0)


def non_negative(timings: Timings) -> dict[str, float]:
    """Name -> rate, at least 0, with the least sum of squared relative errors.

    Args:
        timings: How often each rate is paid, and nanoseconds > 0.
    """
    names = list(timings[0][0])
    counts = np.array([[found[name] for name in names] for found, _ in timings], np.float64)
    ns = np.array([ns for _, ns in timings])
    scale = np.maximum(counts.max(axis=0), 1.0)  # columns differ by a factor of a million
    solved, _ = nnls(counts / scale / ns[:, None], np.ones(len(ns)))
    return dict(zip(names, (solved / scale).tolist(), strict=True))


def left_out(timings: Timings) -> float:
    """Median of |predicted / measured - 1|, each timing predicted by rates from all others."""
    errors = []
    for number, (counts, ns) in enumerate(timings):
        rates = non_negative([*timings[:number], *timings[number + 1 :]])
        errors.append(abs(sum(rates[name] * count for name, count in counts.items()) / ns - 1))
    return float(np.median(errors))


def _about(threads: int, kernels: Kernels, machine: Machine) -> dict[str, Any]:
    """What the rates depend on, JSON-able."""
    return {
        **timings_device(Setting("openvino", "int8", threads), machine),
        "target": kernels.active,
        "library": file_sha256(kernels.library),
    }


def _read(path: Path, about: Mapping[str, Any]) -> KernelRates:
    document = read_json(path, what="cache", hint="delete it")
    if document.pop("format") != FORMAT or document.pop("device") != about:
        raise ValueError("another format or device")
    known = {field.name for field in fields(Rates)}
    if set(document["rates"]) != known:
        raise ValueError("other rates")
    numbers = {name: value for name, value in document["rates"].items() if name not in ("packed", "source")}
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value!r}")
    return KernelRates(**{**document, "rates": Rates(**document["rates"]), "remark": ""})
