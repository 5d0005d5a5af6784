"""A file of unknown origin, tried in a process of its own: native parsers crash, and take their process with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploypruner.device.connection import Device
from deploypruner.errors import InputError, MeasureError
from deploypruner.measure.files import describe_file
from deploypruner.measure.process import Worker


def check_runs(path: Path, runtimes: Sequence[str]) -> None:
    """Open a model and run it once on random inputs, in a worker for each runtime.

    Args:
        path: .onnx, .xml or .pt2.
        runtimes: Registered names.

    Raises:
        InputError: It cannot be opened or run, or ends its process; says what the runtime said last.
    """
    artifact = describe_file(path)
    with Device() as here:
        for runtime in runtimes:
            with Worker(artifact, runtime, threads=1, device=here) as worker:
                try:
                    worker.ask(do="load", runtime=runtime)
                    worker.ask(do="open", path=str(path), threads=1, feeds=None, shapes=None, seed=0)
                    worker.warm_up(max_s=0.0, max_calls=1)
                except MeasureError as error:
                    raise InputError(
                        error.message.replace("cannot measure", "cannot run", 1), hint=error.hint
                    ) from error
