"""Model and data together: what every output is, which labels are whose, and whether the dense model knows them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, batch_size, call, carries_batch, filled, noise_like, tensors
from deploypruner.measure.quality import joined, label_list
from deploypruner.sources.adapted import Unlabelled
from deploypruner.sources.batches import Data, Judgeable
from deploypruner.sources.classes import Names, fit_classes
from deploypruner.sources.data import check_labels, check_shapes
from deploypruner.sources.foreign import first_line
from deploypruner.tasks import Array, tasks
from deploypruner.tasks.recognise import OutputTask, recognise

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
        remarks: What was decided.
    """

    data: Data
    tasks: tuple[OutputTask, ...]
    remarks: tuple[str, ...] = ()


def fit(data: Data, model: nn.Module | ExportedProgram, example_inputs: Inputs, said: Said | None = None) -> Fitted:
    """Check that data and model belong together, and find out what the outputs are.

    Args:
        data: What was given.
        model: The dense model.
        example_inputs: Of the model.
        said: About the outputs; None for nothing.

    Raises:
        InputError: Samples of another shape, a model that cannot run on them, or labels that are none of its classes.
        RecipeError: A task that an output cannot have.
    """
    said = said or Said({})
    check_shapes(data, tuple(tensors(example_inputs)))
    judged = data.val if data.val.has_targets else data.train
    runner = Runner(model, example_inputs)
    batches = _limited(judged.with_targets(batch_size=_BATCH, shuffle=True), _SEEN)
    answers, labels = runner.answers(batches)
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
    if labelled and not (classes == 0 and found[0].label is not None):
        data = replace(data, train=Unlabelled(data.train), val=Unlabelled(data.val))
    told = _about_labels(data, found, answers, labels, labelled=labelled)
    return Fitted(data, found, (*remarks, *told, *_about_tasks(found, answers)))


def tasks_without_data(
    model: nn.Module | ExportedProgram, example_inputs: Inputs, said: Said, *, seed: int
) -> tuple[OutputTask, ...]:
    """What every output is, going by the answers to noise."""
    runner = Runner(model, example_inputs)
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.from_numpy(array) for array in noise_like(example_inputs, _NOISE, generator)]
    answers, _ = runner.answers([(tuple(noise), None)])
    return recognise(runner.names, answers, asked=runner.by_number(said.tasks), expected=said.task)


def require_better_than_chance(
    data: Data, model: nn.Module, example_inputs: Inputs, found: Sequence[OutputTask]
) -> None:
    """Stop before anything is trained on labels that the dense model does not know.

    Raises:
        InputError: It does no better than chance on some output; says how well it does.
    """
    if not data.val.has_targets or not any(output.label is not None for output in found):
        return
    runner = Runner(model, example_inputs)
    batches = data.val.with_targets(batch_size=_BATCH, shuffle=True)
    answers, labels = runner.answers(_limited(batches, _CHECKED, seconds=_SECONDS))
    known = label_list(labels, len(answers[0]))
    for output, answer in zip(found, answers, strict=True):
        if output.label is None:
            continue
        said = tasks.get(output.task)().by_chance(answer, np.asarray(known[output.label]))
        if said:
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


class Runner:
    """Runs a model on batches of any size.

    Args:
        model: Module in evaluation mode, or program.
        example_inputs: What it takes.

    Attributes:
        names: Of its outputs, as the exported files have them.
    """

    def __init__(self, model: nn.Module | ExportedProgram, example_inputs: Inputs) -> None:
        # Guards of a program are about strides, too, which say nothing about what it computes.
        self._module: Any = model if isinstance(model, nn.Module) else model.module(check_guards=False)
        self._example = example_inputs
        with torch.no_grad():
            leaves = pytree.tree_flatten_with_path(call(self._module, example_inputs))[0]
        found = [pytree.keystr(path).strip("[]'.\"") for path, leaf in leaves if isinstance(leaf, Tensor)]
        if not found:
            raise InputError(
                "the model returned nothing that holds a tensor",
                hint="return a tensor, or a tuple or dict that has one",
            )
        self._keys = found
        self.names = ["output"] if len(found) == 1 else [f"output_{i}" for i in range(len(found))]

    def by_number(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Tasks asked for by the model's own key of an output, by its number."""
        own = {key: str(i) for i, key in enumerate(self._keys) if key}
        return {key if key in self.names else own.get(key, key): task for key, task in asked.items()}

    def answers(self, batches: Iterable[Judgeable]) -> tuple[list[Array], Any]:
        """Every output for all batches, and their labels.

        Raises:
            InputError: No samples, or the model cannot run on them.
        """
        found: list[list[Array]] = []
        labels: list[Any] = []
        for inputs, target in batches:
            found.append(self._run(inputs))
            labels.append(as_numpy(target))
            if sum(array.nbytes for batch in found for array in batch) > _BYTES:
                break
        if not found:
            raise InputError("the validation data has no samples", hint="check the validation split")
        return joined(found), join_labels(labels)

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Array]:
        """One batch: as a whole, or where the model takes batches of its own size only, in pieces of that size."""
        count, size = len(inputs[0]), batch_size(self._example)
        try:
            whole = self._call(inputs)
            if all(array.ndim and len(array) == count for array in whole) or count == size:
                return whole
        except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
            if count == size:
                raise InputError(f"the model cannot run on the data: {first_line(error)}", hint=_DATA_HINT) from error
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            piece = tuple(x[rows] if len(x) == count else x for x in inputs)
            try:
                parts.append(self._call(piece))
            except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
                raise InputError(f"the model cannot run on the data: {first_line(error)}", hint=_DATA_HINT) from error
        return [part[:count] if part.ndim and len(part) >= count else part for part in joined(parts)]

    def _call(self, inputs: tuple[Tensor, ...]) -> list[Array]:
        with torch.no_grad():
            output = call(self._module, filled(self._example, self._whole(inputs)))
        return [as_numpy(leaf) for leaf in tensors(output)]

    def _whole(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Inputs that carry no batch, which data cannot have, are the example's own."""
        given = iter(inputs)
        examples = tensors(self._example)
        if len(inputs) == len(examples):
            return list(inputs)
        return [next(given) if carries_batch(example, self._example) else example for example in examples]


_DATA_HINT = "check that a sample of --data is what the model takes"


def as_numpy(value: Any) -> Any:
    """Tensors of a target or output as arrays numpy knows; anything else as it is."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        return plain.float().numpy() if plain.dtype in (torch.bfloat16, torch.float16) else plain.numpy()
    if isinstance(value, tuple):
        return tuple(as_numpy(part) for part in value)
    return value


def join_labels(labels: Sequence[Any]) -> Any:
    """Labels of all batches in the form of one batch's; None where some batch has none."""
    if not labels or any(part is None for part in labels):
        return None
    if isinstance(labels[0], np.ndarray):
        return np.concatenate(labels)
    if isinstance(labels[0], tuple):
        return tuple(join_labels(parts) for parts in zip(*labels, strict=True))
    return [entry for part in labels for entry in part]


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
    if data.train.labelled:
        return ()
    said = ", ".join(f"{output.output} ({output.task})" for output in judged)
    return (f"the labels of '{data.name}' judge {said}; training goes by the dense model's outputs",)


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
