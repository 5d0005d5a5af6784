"""load: the user's model and data, checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from deploypruner.build.answering import Runner
from deploypruner.build.doubted import doubted_data, doubted_labels
from deploypruner.build.fitting import Said, fit, tasks_without_data
from deploypruner.build.metric import own_metric
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage
from deploypruner.build.state import Build
from deploypruner.errors import InputError, RecipeError
from deploypruner.export.program import evaluating
from deploypruner.graph.inputs import Inputs, tensors
from deploypruner.losses import BY_SHAPE
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.sources.classes import names_in, read_classes
from deploypruner.sources.data import as_data, peek_shapes, settings_for
from deploypruner.sources.matched import input_names, matched
from deploypruner.sources.model import LoadedModel, load_model
from deploypruner.sources.soundness import (
    check_dense,
    check_finite,
    check_float,
    check_runs,
    fingerprint,
    to_cpu_float32,
)
from deploypruner.tasks.recognise import parse_tasks


@stages.register("load")
class Load(Stage):
    """Load the model and the data, and check that they are sound and belong together."""

    name: ClassVar[str] = "load"
    reads: ClassVar[tuple[str, ...]] = (
        *("model", "data", "seed"),
        *(f"measure.{name}" for name in ("tasks", "metric", "accuracy_drop")),
    )
    outlives: ClassVar[tuple[str, ...]] = ("measure.accuracy_drop",)  # only a remark tells what it is judged by

    def run(self, build: Build) -> Build:
        """Give model, example inputs and data."""
        loaded, recipe = _model(build), build.recipe
        given = build.given.data if build.given.data is not None else recipe.data.source
        data, remarks, loss = None, loaded.remarks, BY_SHAPE
        doubts: tuple[str, ...] = ()
        said = Said(
            parse_tasks(recipe.measure.tasks),
            loaded.task,
            classes=read_classes(recipe.data.classes) if recipe.data.classes is not None else (),
            carried=loaded.classes,
        )
        metric = _metric(build)
        runner = Runner(loaded.module, loaded.example_inputs)
        if given is None:
            found = tasks_without_data(runner, said, seed=recipe.seed)
        else:
            settings = settings_for(tuple(tensors(loaded.example_inputs)), loaded.preprocessing, recipe.data.settings)
            data = as_data(given, settings)
            remarks += data.remarks
            data, cast = matched(data, loaded.example_inputs, input_names(loaded.module, loaded.example_inputs))
            fitted = fit(data, runner, said)
            data, found, loss = fitted.data, fitted.tasks, fitted.loss
            drop = recipe.measure.accuracy_drop
            doubts = (
                *doubted_data(runner, data, seed=recipe.seed),
                *doubted_labels(found, drop, own=metric is not None),
            )
            remarks += cast + fitted.remarks + doubts
        return replace(
            build,
            name=loaded.name,
            source=loaded.source,
            model=loaded.module,
            sha256=loaded.sha256,
            example_inputs=loaded.example_inputs,
            data=data,
            tasks=found,
            loss=loss,
            doubts=doubts,
            metric=metric,
            remarks=build.remarks + remarks,
        )

    def document(self, build: Build) -> str:
        """Name, input shapes and data."""
        shapes = " ".join("x".join(map(str, t.shape)) for t in tensors(build.example_inputs))
        if build.data is None:
            return f"{build.name} on {shapes}, no data"
        judged = build.metric is not None or any(output.label is not None for output in build.tasks)
        kind = "labelled" if judged or build.data.labelled else "unlabelled"
        counts = " + ".join(str(b.samples or "?") for b in (build.data.train, build.data.val))
        return f"{build.name} on {shapes}, {kind} data '{build.data.name}' ({counts} samples)"

    def warnings(self, build: Build) -> tuple[str, ...]:
        """How the data differs from that of the training."""
        return build.doubts


def _metric(build: Build) -> OwnMetric | None:
    """The user's own metric, imported.

    Raises:
        InputError: It does not exist, or is no function.
        RecipeError: There is nothing it could be called on.
    """
    given, named = build.given.metric, build.recipe.measure.metric
    if given is None and not named:
        return None
    if build.given.data is None and build.recipe.data.source is None:
        raise RecipeError("a metric of your own needs labels, and there is no data", hint="pass --data DIR")
    return own_metric(named if given is None else given)


def _model(build: Build) -> LoadedModel:
    recipe, given = build.recipe.model, build.given
    if given.model is None:
        shapes = peek_shapes(build.recipe.data.source) if build.recipe.data.source and not recipe.input_shapes else {}
        return load_model(
            recipe.source,
            weights=recipe.weights,
            input_shapes=recipe.input_shapes or None,
            trust_pickle=recipe.trust_pickle,
            data_shapes=shapes,
        )
    _check_example_inputs(given.example_inputs)
    kind, module = type(given.model).__name__, given.model
    remarks: tuple[str, ...] = ()
    if isinstance(module, nn.Module):
        check_dense(module)
        # The user's module keeps its mode and its batch-norm statistics.
        module, remarks = to_cpu_float32(evaluating(module))
    check_float(module)
    check_finite(module)
    check_runs(module, given.example_inputs)
    return LoadedModel(
        *(module, given.example_inputs, kind, f"<{kind}>", fingerprint(module)),
        remarks=remarks,
        classes=names_in(given.model),
    )


def _check_example_inputs(inputs: Inputs) -> None:
    for number, value in inputs.items() if isinstance(inputs, dict) else enumerate(inputs):
        if not isinstance(value, Tensor) or not value.ndim:
            kind = "a number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f"example input {number} is {kind}, not a tensor with the batch on axis 0",
                hint="pass tensors; wrap the model in a module whose forward takes nothing else",
            )
