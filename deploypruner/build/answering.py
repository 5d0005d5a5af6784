"""The dense model's answers to samples, in batches of any size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, batch_size, call, carries_batch, filled, tensors
from deploypruner.measure.quality import joined, run_batch
from deploypruner.runtime import Session
from deploypruner.sources.batches import Judgeable
from deploypruner.sources.foreign import foreign
from deploypruner.tasks import Array

# Bytes of answers that are held.
_BYTES = 1 << 28
_DATA_HINT = "check that a sample of --data is what the model takes"


class Runner:
    """Runs a model on batches of any size.

    Args:
        model: Module in evaluation mode, or program.
        example_inputs: What it takes.

    Attributes:
        example_inputs: As given.
        module: What runs.
        names: Of its outputs, as the exported files have them.
    """

    example_inputs: Inputs
    module: Any
    names: list[str]

    def __init__(self, model: nn.Module | ExportedProgram, example_inputs: Inputs) -> None:
        # Guards of a program are about strides, too, which say nothing about what it computes.
        self.module = model if isinstance(model, nn.Module) else model.module(check_guards=False)
        self.example_inputs = example_inputs
        with torch.no_grad():
            output = call(self.module, example_inputs)
        leaves = pytree.tree_flatten_with_path(output)[0]
        found = [pytree.keystr(path).strip("[]'.\"") for path, leaf in leaves if isinstance(leaf, Tensor)]
        if not found:
            raise InputError(
                f"the model returned {type(output).__name__}, which holds no tensor",
                hint="return a tensor, or a tuple or dict that has one",
            )
        self._keys = found
        self.names = ["output"] if len(found) == 1 else [f"output_{i}" for i in range(len(found))]

    def by_number(self, asked: Mapping[str, str]) -> dict[str, str]:
        """Tasks that were asked for by the model's own key of an output, by the output's number."""
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
            found.append(self._batch(inputs))
            labels.append(as_numpy(target))
            if sum(array.nbytes for batch in found for array in batch) > _BYTES:
                break
        if not found:
            raise InputError("the validation data has no samples", hint="check the validation split")
        return joined(found), join_labels(labels)

    def _batch(self, inputs: tuple[Tensor, ...]) -> list[Array]:
        """One batch: as a whole, or where the model takes batches of its own size only, in pieces of that size."""
        count, size = len(inputs[0]), batch_size(self.example_inputs)
        failed = "the model cannot run on the data:"
        if count == size:
            with foreign(failed, hint=_DATA_HINT):
                return self.run(inputs)
        with suppress(Exception):  # whatever its code raises at another size than its own
            whole = self.run(inputs)
            if all(array.ndim and len(array) == count for array in whole):
                return whole
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            piece = tuple(x[rows] if len(x) == count else x for x in inputs)
            with foreign(failed, hint=_DATA_HINT):
                parts.append(self.run(piece))
        return [part[:count] if part.ndim and len(part) >= count else part for part in joined(parts)]

    def run(self, inputs: tuple[Tensor, ...]) -> list[Array]:
        """Every output for a batch that the model takes as it is."""
        with torch.no_grad():
            output = call(self.module, filled(self.example_inputs, self._whole(inputs)))
        return [as_numpy(leaf) for leaf in tensors(output)]

    def _whole(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Inputs that carry no batch, which data cannot have, are the example's own."""
        given = iter(inputs)
        examples = tensors(self.example_inputs)
        if len(inputs) == len(examples):
            return list(inputs)
        return [next(given) if carries_batch(example, self.example_inputs) else example for example in examples]


class SessionRunner(Runner):
    """The same of a loaded file.

    Args:
        session: The file.
        example_inputs: One sample of each input.
    """

    def __init__(self, session: Session, example_inputs: tuple[Tensor, ...]) -> None:
        self._session = self.module = session
        self.example_inputs = example_inputs
        self.names = [spec.name for spec in session.outputs]
        self._keys = self.names

    def run(self, inputs: tuple[Tensor, ...]) -> list[Array]:
        """See `Runner`; a batch of the file's own size is made where that is fixed."""
        return run_batch(self._session, [np.asarray(x.numpy(), order="C") for x in inputs])


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
