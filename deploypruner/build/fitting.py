"""Model and data together: what every output is, which labels are whose, and whether the dense model knows them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from deploypruner.build.answering import Runner
from deploypruner.errors import InputError
from deploypruner.graph.inputs import noise_like, tensors
from deploypruner.losses import ModelLoss, OutputLoss
from deploypruner.measure.quality import by_chance, label_list
from deploypruner.sources.adapted import Targeted, Unlabelled
from deploypruner.sources.batches import Batches, Data, Judgeable
from deploypruner.sources.classes import Names, fit_classes
from deploypruner.sources.data import check_labels, check_shapes
from deploypruner.tasks import Array, tasks
from deploypruner.tasks.recognise import OutputTask, recognise
from deploypruner.tasks.relative import variance

# Samples whose answers say what an output is; samples and seconds for seeing whether they are better than chance;
# bytes of answers that are held.
_SEEN, _CHECKED, _SECONDS, _BYTES = 64, 512, 10.0, 1 << 28
_BATCH, _NOISE = 32, 16


@dataclass(frozen=True)
class Said:
    """What the user and the model's source say about its outputs.

    Args:
        tasks: Output name, number or "" -> task, as the user says.
        task: Of the first output, as the source says; "" where it does not.
        classes: Names the user gave, in the order of the outputs.
        carried: Names that the model carries.
    """

    tasks: Mapping[str, str]
    task: str = ""
    classes: Names = ()
    carried: Names = ()


@dataclass(frozen=True)
class Fitted:
    """Data and model that belong together.

    Args:
        data: With the model's class numbers; labels that nothing can be trained on only judge.
        tasks: What every output is.
        loss: What every output is trained and compared by.
        remarks: What was decided.
    """

    data: Data
    tasks: tuple[OutputTask, ...]
    loss: ModelLoss
    remarks: tuple[str, ...] = ()


def fit(data: Data, runner: Runner, said: Said | None = None) -> Fitted:
    """Check that data and model belong together, and find out what the outputs are.

    Args:
        data: What was given.
        runner: Of the dense model.
        said: About the outputs; None for nothing.

    Raises:
        InputError: Samples of another shape, a model that cannot run on them, or labels that are none of its classes.
        RecipeError: A task that an output cannot have.
    """
    said = said or Said({})
    check_shapes(data, tuple(tensors(runner.example_inputs)))
    judged = data.val if data.val.has_targets else data.train
    batches = _limited(judged.with_targets(batch_size=_BATCH, shuffle=True), _SEEN)
    answers, labels = runner.answers(batches)
    _require_numbers(answers, runner.names, data.name)
    known = label_list(labels, len(answers[0]))
    found = recognise(runner.names, answers, known, asked=runner.by_number(said.tasks), expected=said.task)
    labelled = data.train.labelled or data.val.labelled
    classes = _class_output(found, answers, labelled=labelled)
    remarks: tuple[str, ...] = ()
    if classes is not None:
        data, remarks = fit_classes(data, answers[classes].shape[1], asked=said.classes, carried=said.carried)
        check_labels(data, answers[classes].shape[1])
    elif said.classes:
        raise InputError(
            "--classes names classes, and no output of the model has labels of classes",
            hint="--classes is for class folders and an output [batch, classes]",
        )
    data, used = _trainable(data, found)
    loss = ModelLoss(
        tuple(_loss(o, a, known, used) for o, a in zip(found, answers, strict=True) if a.dtype.kind == "f")
    )
    told = _about_labels(data, found, answers, labels, labelled=labelled)
    return Fitted(data, found, loss, (*remarks, *told, *_about_tasks(found, answers)))


def _require_numbers(answers: Sequence[Array], names: Sequence[str], data: str) -> None:
    """Refuse a dense model that answers NaN: nothing could be calibrated, trained or judged by it.

    Raises:
        InputError: It does; names the output and says for how many samples.
    """
    for name, answer in zip(names, answers, strict=True):
        if answer.dtype.kind != "f" or not answer.ndim:
            continue
        wrong = int(np.isnan(answer).reshape(len(answer), -1).any(axis=1).sum())
        if wrong:
            raise InputError(
                f"output '{name}' of the dense model is NaN for {wrong} of {len(answer)} samples of '{data}'",
                hint="check how the samples are prepared (--mean and --std of images), or use an earlier checkpoint",
            )


def _trainable(data: Data, found: Sequence[OutputTask]) -> tuple[Data, tuple[int, ...]]:
    """The data with the labels that train, and which of the given ones those are, in the order they come in.

    One class per sample stays as it is, for images are augmented then; other labels come without that. Integers that
    the model has decided on itself have no gradient.
    """
    trained = [output for output in found if output.label is not None and output.task != "ids"]
    used = tuple(sorted({output.label for output in trained if output.label is not None}))
    plain = all(output.task in ("classification", "binary") for output in trained)

    def adapted(split: Batches) -> Batches:
        hidden = isinstance(split, Unlabelled)  # its targets are for judging alone
        if hidden or not used or not split.has_targets:
            return Unlabelled(split)
        return split if split.labelled and plain else Targeted(split, used)

    return replace(data, train=adapted(data.train), val=adapted(data.val)), used


def _loss(output: OutputTask, answer: Array, labels: Sequence[Array | None], used: Sequence[int]) -> OutputLoss:
    """What an output is trained and compared by."""
    task = tasks.get(output.task)()
    trained = output.label is not None and output.label in used
    own = labels[output.label] if trained and output.label is not None else None
    return OutputLoss(
        output.output,
        task.loss,
        label=None if own is None or output.label is None else used.index(output.label),
        class_axis=task.class_axis,
        probabilities=task.probabilities(answer),
        spread=variance(answer),
        label_spread=None if own is None else variance(own),
    )


def tasks_without_data(runner: Runner, said: Said, *, seed: int) -> tuple[OutputTask, ...]:
    """What every output is, going by the answers to noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.from_numpy(array) for array in noise_like(runner.example_inputs, _NOISE, generator)]
    answers, _ = runner.answers([(tuple(noise), None)])
    return recognise(runner.names, answers, asked=runner.by_number(said.tasks), expected=said.task)


def require_better_than_chance(data: Data, runner: Runner, found: Sequence[OutputTask]) -> None:
    """Stop before anything is trained on labels that the dense model does not know.

    Raises:
        InputError: It does no better than chance on some output; says how well it does.
    """
    if not data.val.has_targets or not any(output.label is not None for output in found):
        return
    batches = data.val.with_targets(batch_size=_BATCH, shuffle=True)
    answers, labels = runner.answers(_limited(batches, _CHECKED, seconds=_SECONDS))
    for output, said in by_chance(found, answers, label_list(labels, len(answers[0]))):
        raise InputError(
            f"the dense model does no better than chance on the labels of '{data.name}': {said}",
            hint=_chance_hint(output, data),
        )


def _chance_hint(output: OutputTask, data: Data) -> str:
    allowed = "or --allow-chance to go on all the same"
    if output.task in ("classification", "binary", "multilabel") and data.classes is None:
        return f"check the order of the classes and how inputs are prepared (--mean, --std); {allowed}"
    if output.task == "classification":
        return f"--classes FILE says which output a class is, --mean and --std how images are prepared; {allowed}"
    return f"check the unit of the labels and how inputs are prepared; --task says what an output is, {allowed}"


def _limited(batches: Iterable[Judgeable], count: int, *, seconds: float = float("inf")) -> Iterator[Judgeable]:
    """Whole batches until there are enough samples, or the time is over; at least `_SEEN` samples."""
    seen, until = 0, time.monotonic() + seconds
    for inputs, labels in batches:
        yield inputs, labels
        seen += len(inputs[0])
        if seen >= count or (seen >= _SEEN and time.monotonic() > until):
            return


def _class_output(found: Sequence[OutputTask], answers: Sequence[Array], *, labelled: bool) -> int | None:
    """Which output class numbers are checked against: the one that has them, or the first that could have."""
    taken = next((i for i, o in enumerate(found) if o.task == "classification" and o.label is not None), None)
    if taken is not None or not labelled or any(output.label is not None for output in found):
        return taken if labelled else None
    classification = tasks.get("classification")()
    could = (i for i, o in enumerate(found) if not o.asked or o.task == "classification")
    return next((i for i in could if classification.takes(answers[i])), None)


def _about_labels(
    data: Data, found: Sequence[OutputTask], answers: Sequence[Array], labels: Any, *, labelled: bool
) -> tuple[str, ...]:
    if labels is None:
        return ()
    judged = [output for output in found if output.label is not None]
    if not judged and labelled:
        return (
            f"the labels of '{data.name}' are not used: they are one class per sample, and the model's output has "
            f"shape {_shape(answers[0])} instead of [batch, classes]",
        )
    if not judged:
        kind = f"{labels.dtype}, shape {_shape(labels)}" if isinstance(labels, np.ndarray) else type(labels).__name__
        shapes = ", ".join(_shape(answer) for answer in answers)
        return (f"the labels of '{data.name}' ({kind}) fit no output of the model ({shapes}): treated as unlabelled",)
    said = ", ".join(f"{output.output} ({output.task})" for output in judged)
    if not data.train.labelled:
        return (f"the labels of '{data.name}' judge {said}; training goes by the dense model's outputs",)
    unmoved = isinstance(data.train, Targeted) and any(len(shape) == 3 for shape in data.train.input_shapes or ())
    plain = "; images are not augmented, as such labels can depend on where things lie" if unmoved else ""
    return (f"the labels of '{data.name}' judge and train {said}{plain}",) if plain else ()


def _about_tasks(found: Sequence[OutputTask], answers: Sequence[Array]) -> tuple[str, ...]:
    """Outputs that could be classes, and nothing shows that they are."""
    classification = tasks.get("classification")()
    return tuple(
        f"{output.output} ({_shape(answer)}) does not look like scores of classes and is judged by its relative "
        f"error; --task {output.output}=classification or embedding says what it is"
        for output, answer in zip(found, answers, strict=True)
        if output.task == "values" and not output.asked and classification.takes(answer)
    )


def _shape(array: Array) -> str:
    return f"[{', '.join(map(str, ('batch', *array.shape[1:])))}]"
