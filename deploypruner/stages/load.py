"""load: the user's model and data, checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.export.program import evaluating
from deploypruner.graph.inputs import Inputs, call, tensors
from deploypruner.sources.adapted import Unlabelled
from deploypruner.sources.batches import Data
from deploypruner.sources.data import as_data, check_labels, check_shapes, peek_shape, settings_for
from deploypruner.sources.matched import input_names, matched
from deploypruner.sources.model import LoadedModel, load_model
from deploypruner.sources.soundness import check_dense, check_finite, check_runs, fingerprint, to_cpu_float32
from deploypruner.stages import Build, Stage


class Load(Stage):
    """Load the model and the data, and check that they are sound and belong together."""

    name: ClassVar[str] = "load"

    def run(self, build: Build) -> Build:
        """Give model, example inputs and data."""
        loaded = _model(build)
        output = output_shape(loaded.module, loaded.example_inputs)
        given = build.given.data if build.given.data is not None else build.recipe.data.source
        data = None
        remarks = loaded.remarks
        if given is not None:
            settings = settings_for(
                tuple(tensors(loaded.example_inputs)), loaded.preprocessing, build.recipe.data.settings
            )
            data = as_data(given, settings)
            remarks += data.remarks
            data, cast = matched(data, loaded.example_inputs, input_names(loaded.module, loaded.example_inputs))
            data, said = fitting(data, loaded.example_inputs, output)
            remarks += cast + said
        return replace(
            build,
            name=loaded.name,
            source=loaded.source,
            model=loaded.module,
            sha256=loaded.sha256,
            example_inputs=loaded.example_inputs,
            data=data,
            remarks=build.remarks + remarks,
        )

    def document(self, build: Build) -> str:
        """Name, input shapes and data."""
        shapes = " ".join("x".join(map(str, t.shape)) for t in tensors(build.example_inputs))
        if build.data is None:
            return f"{build.name} on {shapes}, no data"
        kind = "labelled" if build.data.labelled else "unlabelled"
        counts = " + ".join(str(b.samples or "?") for b in (build.data.train, build.data.val))
        return f"{build.name} on {shapes}, {kind} data '{build.data.name}' ({counts} samples)"


def _model(build: Build) -> LoadedModel:
    recipe, given = build.recipe.model, build.given
    if given.model is None:
        shape = peek_shape(build.recipe.data.source) if build.recipe.data.source and not recipe.input_shapes else None
        return load_model(
            recipe.source,
            weights=recipe.weights,
            input_shapes=recipe.input_shapes or None,
            trust_pickle=recipe.trust_pickle,
            data_shape=shape,
        )
    _check_example_inputs(given.example_inputs)
    kind, module = type(given.model).__name__, given.model
    remarks: tuple[str, ...] = ()
    if isinstance(module, nn.Module):
        check_dense(module)
        # The user's module keeps its mode and its batch-norm statistics.
        module, remarks = to_cpu_float32(evaluating(module))
    check_finite(module)
    check_runs(module, given.example_inputs)
    return LoadedModel(module, given.example_inputs, kind, f"<{kind}>", fingerprint(module), remarks=remarks)


def _check_example_inputs(inputs: Inputs) -> None:
    for number, value in inputs.items() if isinstance(inputs, dict) else enumerate(inputs):
        if not isinstance(value, Tensor) or not value.ndim:
            kind = "a number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f"example input {number} is {kind}, not a tensor with the batch on axis 0",
                hint="pass tensors; wrap the model in a module whose forward takes nothing else",
            )


def fitting(data: Data, example_inputs: Inputs, output: tuple[int, ...]) -> tuple[Data, tuple[str, ...]]:
    """Check that data and model belong together; labels of a model that is no classifier are left out.

    Args:
        data: What was given.
        example_inputs: Of the model.
        output: Shape of the model's first output, batch included.

    Returns:
        The data to use, and remarks.

    Raises:
        InputError: Samples of another shape, or labels that are none of the model's outputs.
    """
    check_shapes(data, tuple(tensors(example_inputs)))
    if not (data.train.labelled or data.val.labelled):
        return data, ()
    if len(output) == 2 and output[1] > 1:
        return data, check_labels(data, output[1])
    remark = (
        f"the labels of '{data.name}' are not used: they are one class per sample, and the model's output has "
        f"shape {list(output)} instead of [batch, classes]"
    )
    return replace(data, train=Unlabelled(data.train), val=Unlabelled(data.val)), (remark,)


def output_shape(model: nn.Module | ExportedProgram, example_inputs: Inputs) -> tuple[int, ...]:
    """Shape of the first tensor the model returns, batch included.

    Raises:
        InputError: It returns no tensor.
    """
    module: Any = model if isinstance(model, nn.Module) else model.module()
    with torch.no_grad():
        output = call(module, example_inputs)
    found = tensors(output)
    if not found:
        raise InputError(
            f"the model returned {type(output).__name__}, which holds no tensor",
            hint="return a tensor, or a tuple or dict that has one",
        )
    return tuple(found[0].shape)
