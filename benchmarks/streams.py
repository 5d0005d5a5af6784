"""Whether more than one stream makes one inference faster: requests one after the other, as a latency is measured.

    python -m benchmarks.streams                       # three networks, dense int8 and 1x4 at 90 %
    python -m benchmarks.streams --net resnet50 --threads 4

All settings are compiled in one process and take turns call by call; a ratio is the median over rounds of a setting's
time over that of one stream with all threads.
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import click
import numpy as np

from benchmarks.sparse_models import NETS, Variant, prepare
from deploypruner.openvino_import import import_openvino
from deploypruner.runtime.on_openvino import OpenVino, add_sparse_operations, openvino_core

_WARM = 5


def opened(variant: Variant, kind: str, *, threads: int, streams: int) -> Any:
    """A request of a compiled model, with random input."""
    settings = {**OpenVino._settings(threads), "NUM_STREAMS": str(streams)}
    model = openvino_core().compile_model(str(variant.file(kind)), "CPU", settings)
    request = model.create_infer_request()
    x = np.random.default_rng(0).normal(size=variant.shape).astype(np.float32)
    request.set_input_tensor(import_openvino().Tensor(x))
    return request


def measure(variant: Variant, kind: str, *, threads: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Setting -> median ms, and times as long as with one stream."""
    streams = sorted({1, threads})
    settings = {
        f"{threads} threads in {count} stream{'' if count == 1 else 's'}": (threads, count) for count in streams
    }
    settings["1 thread"] = (1, 1)
    requests = [opened(variant, kind, threads=count, streams=many) for count, many in settings.values()]
    for request in requests * _WARM:
        request.infer(share_outputs=True)
    rounds: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        taken = []
        for request in requests:
            began = time.perf_counter()
            request.infer(share_outputs=True)
            taken.append(1e3 * (time.perf_counter() - began))
        rounds.append(taken)
    ms = np.array(rounds)
    return {
        name: (float(np.median(ms[:, place])), float(np.median(ms[:, place] / ms[:, 0])))
        for place, name in enumerate(settings)
    }


@click.command()
@click.option(
    "--net",
    "nets",
    multiple=True,
    type=click.Choice(NETS),
    default=("resnet50", "mobilenet_v2", "efficientnet_b0"),
    show_default=True,
)
@click.option("--threads", default=2, show_default=True, help="Of all streams together.")
@click.option("--seconds", default=10.0, show_default=True, help="For each file.")
def main(nets: tuple[str, ...], threads: int, seconds: float) -> None:
    """Measure and print."""
    add_sparse_operations()
    for net, (kind, variant) in product(nets, (("openvino", ""), ("every", "1x4"))):
        found = Variant(net, variant, 0.9) if variant else Variant(net)
        prepare(found, (kind,))
        for name, (ms, ratio) in measure(found, kind, threads=threads, seconds=seconds).items():
            click.echo(f"{net} {kind:9} {name:24} {ms:7.2f} ms  {ratio:.2f}")


if __name__ == "__main__":
    main()
