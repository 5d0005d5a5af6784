"""Any files, measured side by side: what `measure` and the command `bench` are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploypruner.device.described import described
from deploypruner.device.machine import Machine
from deploypruner.device.reach import HERE, reach
from deploypruner.errors import InputError
from deploypruner.measure.baselines import Job
from deploypruner.measure.elsewhere import measurable
from deploypruner.measure.files import denormal_weights, describe_file
from deploypruner.measure.kernels import check_sendable
from deploypruner.measure.protocol import Measured, time_artifacts
from deploypruner.measure.rounds import NARROW, Progress
from deploypruner.measure.rows import make_rows
from deploypruner.measure.shapes import side_by_side
from deploypruner.measure.warnings import about_inputs, find_doubts
from deploypruner.records import Artifact, Quality, Row
from deploypruner.runtime import Array, default_runtimes, opens, runtimes

FORMAT = 1


@dataclass(frozen=True)
class Bench:
    """Artifacts measured side by side.

    Args:
        rows: One per artifact and runtime that could be measured, each runtime's baseline first.
        measured: Raw timings, failures and what else the machine did.
        environment: Machine and software before the run.
        warnings: What casts doubt on the numbers, each with what to try.
        noise: Those of them that are about the machine and its noise.
        settings: What was asked for.
        sent_bytes: To another machine, files and what measures them; 0 where it had all of it.
    """

    rows: tuple[Row, ...]
    measured: Measured
    environment: dict[str, Any]
    warnings: tuple[str, ...]
    noise: tuple[str, ...]
    settings: dict[str, Any]
    sent_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Everything, raw nanoseconds too, as JSON-able values."""
        measured = self.measured
        raw = {(timing.artifact.name, timing.runtime): timing for timing in measured.timings}
        rows = []
        for row in self.rows:
            timing = raw[row.name, row.runtime]
            rows.append(
                {
                    **asdict(row),
                    "path": str(timing.artifact.path),
                    "load_s": timing.load_s,
                    "warmup": timing.warmup,
                    "settings": timing.settings,
                    "samples_ns": timing.samples_ns.tolist(),
                }
            )
        return {
            "format": FORMAT,
            "settings": self.settings,
            "environment": self.environment,
            "noise_floor": measured.floor,
            "settled": measured.settled,
            "certifiable": measured.certifiable,
            "reason": measured.reason,
            "rows": rows,
            "twin": {
                "of": measured.twin.artifact.name,
                "runtime": measured.twin.runtime,
                "samples_ns": measured.twin.samples_ns.tolist(),
            },
            "failures": [
                {"name": f.artifact.name, "path": str(f.artifact.path), "runtime": f.runtime}
                | {"message": f.message, "hint": f.hint}
                for f in measured.failures
            ],
            "conditions": measured.conditions.as_json(),
            "warnings": list(self.warnings),
            "sent_bytes": self.sent_bytes,
        }


def bench(
    paths: Sequence[Path],
    *,
    runtimes: Sequence[str] | None = None,
    threads: int = 1,
    budget_s: float = 12.0,
    narrow: float = NARROW,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    feeds: Sequence[Array] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    longer: str = "",
    judged: Callable[[Sequence[Job]], Sequence[Quality | None]] | None = None,
    target: str = HERE,
) -> Bench:
    """Time artifacts side by side; the first file is what the others are compared with.

    Args:
        paths: .onnx, .xml or .pt2 files of any origin.
        runtimes: Registered names; where None, each file is timed on the default ones that open its kind, or on
            every one that does where no default one does.
        threads: Threads of every runtime.
        budget_s: Seconds of measuring, loading and warm-up not counted.
        narrow: Half width of every ratio's interval that ends the measuring: 0.02 is ±2 %.
        input_shapes: Full shapes by input name, for dynamic dimensions; of an input that is not named they are those
            of the input in the same place of another file.
        feeds: One array per input, for every file; random ones where None.
        seed: Seed of random inputs, order and bootstrap.
        progress: Told after every round: fraction of the budget, one line of text.
        longer: Command that measures longer, for warnings; "" where there is none.
        judged: Gives the quality of each of the files on its runtime, here; None where nothing is known about it.
        target: The machine to measure on: `cpu`, ssh://user@host or a name in targets.toml.

    Raises:
        InputError: No file, or one that none of the runtimes can open.
        RecipeError: No such runtime or target, or a number out of range.
        DeviceError: The machine cannot be reached, lacks something, or was lost.
        MeasureError: No artifact could be loaded and run; where some could, the others are in `measured.failures`.
    """
    where = described(target)
    jobs = pair_up(paths, runtimes)  # what is wrong with the files is said before any machine is asked
    with reach(where) as device:
        machine = device.environment()
        if where.name != HERE:
            check_sendable(paths, Machine(device, where))
            jobs = pair_up(paths, measurable(where, runtimes, machine))
        input_shapes = side_by_side(jobs, input_shapes or {})
        qualities = dict(zip(jobs, judged(jobs), strict=True)) if judged is not None else {}
        measured = time_artifacts(
            jobs,
            threads=threads,
            budget_s=budget_s,
            narrow=narrow,
            seed=seed,
            feeds=feeds,
            input_shapes=input_shapes,
            progress=progress,
            device=device,
        )
    rows = make_rows(measured.timings, [qualities.get(job) for job in measured.jobs], floor=measured.floor, seed=seed)
    warnings = find_doubts(measured, machine, narrow=narrow, longer=longer)
    noise = tuple(text for text in warnings if text not in about_inputs(measured.timings))
    warnings += [
        f"{found} weights of '{path}' are denormal (below 1.2e-38, not zero), which is many times slower: "
        "set them to zero"
        for path in dict.fromkeys(paths)
        if (found := denormal_weights(path))
    ]
    settings = {
        "threads": threads,
        "seconds": budget_s,
        "interval": narrow,
        "input_shapes": {name: list(shape) for name, shape in input_shapes.items()},
        "seed": seed,
        "target": target,
    }
    return Bench(tuple(rows), measured, machine, tuple(warnings), noise, settings, device.bytes_sent)


def openers(names: Sequence[str] | None = None) -> frozenset[str]:
    """File name endings that the runtimes `names` open, or the default ones where None."""
    return frozenset().union(*(runtimes.get(name).suffixes for name in names or default_runtimes()))


def pair_up(paths: Sequence[Path], names: Sequence[str] | None = None) -> list[Job]:
    """Return every pair of a file and a runtime that opens its kind, runtimes together.

    Args:
        paths: Files.
        names: Registered names; where None, the default runtimes, and for a file that none of them opens, every
            other one that does.

    Raises:
        InputError: A file that is missing or that none of the runtimes opens.
        RecipeError: No such runtime.
    """
    asked = list(names or runtimes)
    artifacts = _told_apart([describe_file(path) for path in paths])
    for path in paths:
        if not any(opens(runtimes.get(name), path) for name in asked):
            able = [name for name in runtimes if opens(runtimes.get(name), path)]
            raise InputError(f"{', '.join(asked)} cannot open '{path}'", hint=f"use --runtime {able[0]}")
    usual, usually_opened = default_runtimes(), openers()

    def wanted(path: Path, name: str) -> bool:
        usable = names is not None or name in usual or path.suffix not in usually_opened
        return usable and opens(runtimes.get(name), path)

    return [(artifact, name) for name in asked for artifact in artifacts if wanted(artifact.path, name)]


def _told_apart(artifacts: Sequence[Artifact]) -> list[Artifact]:
    """The same with names that differ: files of one name get their paths, one file that is given twice a number."""
    names = [artifact.name for artifact in artifacts]
    longer = [str(a.path) if names.count(a.name) > 1 else a.name for a in artifacts]
    found = []
    for index, (artifact, name) in enumerate(zip(artifacts, longer, strict=True)):
        before = longer[:index].count(name)
        found.append(replace(artifact, name=f"{name} ({before + 1})" if before else name))
    return found
