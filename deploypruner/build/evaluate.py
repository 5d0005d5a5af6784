"""What accuracy and agreement are computed on, and what is fed to an artifact that is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deploypruner.build.answering import as_numpy, join_labels
from deploypruner.build.feeds import evaluated_at_once
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.state import Build
from deploypruner.graph.inputs import batch_size, call, filled, noise_like, tensors
from deploypruner.measure import Job, evaluate, outputs
from deploypruner.measure.quality import Batch, judge_output, judge_outputs, label_list
from deploypruner.records import ACCURACY, Metric, Quality
from deploypruner.runtime import default_runtimes, in_float32, opens, runtimes
from deploypruner.search.gaps import Gap, gaps, largest
from deploypruner.search.judge import Judge
from deploypruner.train.modes import evaluating
from deploypruner.train.validate import top1_percent

# Validation inputs and the dense model's outputs are held while all artifacts are judged, so they have to fit into
# memory.
_MEMORY_BYTES = 1 << 30
_BATCH, _VALIDATION_BATCH = 16, 256
_NOISE_SAMPLES = 64
_DISTANCE_SAMPLES = 256

Samples = list[Batch]


def validation_samples(build: Build) -> Samples:
    """Inputs and labels that accuracy and agreement are computed on; noise without data."""
    if build.data is None:
        generator = torch.Generator().manual_seed(build.recipe.seed + 1)
        example = build.traced.example_inputs
        batch = _BATCH if build.traced.dynamic_batch else batch_size(example)
        return [(noise_like(example, batch, generator), None) for _ in range(_NOISE_SAMPLES // batch or 1)]
    most, val = max_samples(build), build.data.val
    seen = 0
    samples: Samples = []
    whole = val.samples is not None and val.samples <= most
    for inputs, labels in val.with_targets(batch_size=_BATCH, seed=build.recipe.seed, shuffle=not whole):
        if seen >= most:
            break
        samples.append(([np.asarray(t.numpy(), order="C") for t in inputs], as_numpy(labels)))
        seen += len(inputs[0])
    return samples


def max_samples(build: Build) -> int:
    """Samples of the validation data that are judged: what the recipe says, as far as memory allows."""
    graph = build.traced
    with torch.no_grad():
        answers = tensors(call(graph.module, graph.example_inputs))
    numbers = [*tensors(graph.example_inputs), *answers, *answers]
    each = sum(t.numel() * t.element_size() for t in numbers) / max(1, batch_size(graph.example_inputs))
    return max(1, min(build.recipe.measure.samples, int(_MEMORY_BYTES / max(1.0, each))))


def judge(build: Build, jobs: Sequence[Job], samples: Samples) -> list[Quality]:
    """Quality of every job, each against the dense fp32 model, whatever the jobs are."""
    build.progress.start(len(jobs) + 1, "evaluate")
    try:
        artifact, runtime = _dense(build, jobs)
        reference = outputs(_open(artifact.path, runtime), samples)
        build.progress.advance()
        tasks = build.tasks if reference and len(reference[0]) == len(build.tasks) else None
        found = []
        for artifact, runtime in jobs:
            session = _open(artifact.path, runtime)
            found.append(evaluate(session, samples, reference=reference, tasks=tasks, metric=build.metric))
            build.progress.advance()
        return found
    finally:
        build.progress.close()


def _dense(build: Build, jobs: Sequence[Job]) -> Job:
    """The dense fp32 model on a runtime that opens it: one of the jobs' where possible."""
    dense = next(
        artifact for artifact in build.artifacts if (artifact.pattern, artifact.precision) == ("dense", "fp32")
    )
    names = [*(in_float32(runtime) for _, runtime in jobs), *default_runtimes()]
    return dense, next(name for name in names if opens(runtimes.get(name), dense.path))


@dataclass(frozen=True)
class Validation:
    """How well a module does on the validation data, for training to go by.

    Args:
        metric: What is counted, on the first output with labels.
        value: Gives it for a module.
        all_outputs: Where several outputs have labels, the mean of their metrics in points.
    """

    metric: Metric
    value: Callable[[nn.Module], float]
    all_outputs: Callable[[nn.Module], float] | None = None

    def score(self, module: nn.Module, *, known: float | None = None) -> float:
        """What the best epoch has most of: every output counts, and the sign is turned where lower is better.

        Args:
            module: To be scored.
            known: Its `value`, where that was found already.
        """
        if self.all_outputs is not None:
            return self.all_outputs(module)
        found = self.value(module) if known is None else known
        return found if self.metric.higher_is_better else -found


def validation(build: Build) -> Validation | None:
    """What a module is validated by; None where no output has labels."""
    data = build.data
    if data is None:
        return None
    first = next((output for output in build.tasks if output.label is not None), None)
    classes = first is not None and first.task == "classification" and first == build.tasks[0]
    if build.metric is None and (data.val.known_labels() is not None and (classes or not build.tasks)):
        size = evaluated_at_once(build, _VALIDATION_BATCH)
        return Validation(ACCURACY, lambda module: top1_percent(module, data.val, batch_size=size))
    if not data.val.has_targets or (build.metric is None and first is None):
        return None
    samples = validation_samples(build)
    quality = module_quality(build, build.traced.module, samples)
    several = sum(output.accuracy is not None for output in quality.outputs) > 1
    return Validation(
        quality.metric,
        lambda module: _accuracy(module_quality(build, module, samples)),
        (lambda module: _in_points(module_quality(build, module, samples))) if several else None,
    )


def distance(build: Build) -> Validation:
    """What a module is validated by without labels: how far its outputs are from the dense model's.

    On up to `_DISTANCE_SAMPLES` validation samples, so that it may be asked after every epoch.
    """
    assert build.data is not None, "there is no data"
    batches = build.data.val.epoch(batch_size=_BATCH, seed=build.recipe.seed, shuffle=True, augment=False)
    held = [(inputs, None) for inputs, _ in islice(batches, _DISTANCE_SAMPLES // _BATCH)]
    judge = Judge(build.traced, solving=[], held_out=held, loss=build.loss)
    metric = Metric(judge.dense.kind, unit="", points=None, higher_is_better=False)
    return Validation(metric, lambda module: judge.verdict(module).loss)


def module_quality(build: Build, module: nn.Module, samples: Samples) -> Quality:
    """Judge a module by its labels alone."""
    joined = [np.concatenate(parts) for parts in zip(*_answers(build, module, samples), strict=True)]
    labels = join_labels([target for _, target in samples])
    if build.metric is not None:
        return Quality(build.metric(joined, labels), None, "", len(joined[0]), build.metric.metric)
    known = label_list(labels, len(joined[0]))
    judged = [judge_output(o, a, None, known) for o, a in zip(build.tasks, joined, strict=True)]
    first = next(quality for quality in judged if quality.metric is not None)
    assert first.metric is not None, "it is the first with a metric"
    return Quality(first.accuracy, None, "", len(joined[0]), first.metric, tuple(judged))


def module_agreement(build: Build, module: nn.Module) -> Gap:
    """How far a module is from the dense one where nothing is labelled: of the output that agrees least."""
    samples = validation_samples(build)
    ours, theirs = (_answers(build, each, samples) for each in (module, build.traced.module))
    tasks = build.tasks if len(ours[0]) == len(build.tasks) else None
    names = [f"output {number}" for number in range(len(ours[0]))]
    quality = judge_outputs(ours, [None] * len(ours), names, reference=theirs, tasks=tasks)
    gap = largest(gaps(quality, None))
    assert gap is not None, "outputs that are compared agree or not"
    return gap


def _answers(build: Build, module: nn.Module, samples: Samples) -> list[list[Any]]:
    """Outputs of a module, a list for every batch."""
    example = build.traced.example_inputs
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    answers: list[list[Any]] = []
    with evaluating(module), torch.no_grad():
        for feeds, _ in samples:
            inputs = filled(example, [torch.from_numpy(array).to(device) for array in feeds])
            answers.append([as_numpy(leaf) for leaf in tensors(call(module, inputs))])
    return answers


def _in_points(quality: Quality) -> float:
    """Mean over the outputs with labels, each metric in its points and higher for better."""
    found = []
    for output in quality.outputs:
        if output.metric is not None and output.accuracy is not None:
            points = output.accuracy * (output.metric.points or 1.0)
            found.append(points if output.metric.higher_is_better else -points)
    return float(np.mean(found))


def _accuracy(quality: Quality) -> float:
    assert quality.accuracy is not None, "there are labels"
    return quality.accuracy


def form_judge(build: Build, file: Path, runtime: str) -> FormJudge:
    """Judges forms of the build's model on its validation samples.

    Args:
        build: Loaded and traced.
        file: What they are judged against.
        runtime: That it runs in; in float32 where that runtime computes in bf16.
    """
    return FormJudge(
        file,
        in_float32(runtime),
        validation_samples(build),
        opened=_open,
        tasks=build.tasks,
        metric=build.metric,
    )


def _open(path: Path, runtime: str) -> Any:
    """A session that judges: on as many threads as torch has."""
    return runtimes.get(runtime)().open(path, threads=torch.get_num_threads())
