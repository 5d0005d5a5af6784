"""load: the user's model and data, checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.sources.data import as_data, check_labels, check_shapes, peek_shape, settings_for
from deploypruner.sources.model import LoadedModel, load_model
from deploypruner.sources.soundness import check_finite, check_runs, fingerprint
from deploypruner.stages import Build, Stage


class Load(Stage):
    """Load the model and the data, and check that they are sound and belong together."""

    name: ClassVar[str] = "load"

    def run(self, build: Build) -> Build:
        """Give model, example inputs and data."""
        loaded = _model(build)
        given = build.given.data if build.given.data is not None else build.recipe.data.source
        data = None
        remarks = loaded.remarks
        if given is not None:
            settings = settings_for(loaded.example_inputs, loaded.preprocessing, build.recipe.data.settings)
            data = as_data(given, settings)
            check_shapes(data, loaded.example_inputs)
            remarks += data.remarks
            if data.labelled:
                remarks += check_labels(data, _classes(loaded))
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
        shapes = " ".join("x".join(map(str, t.shape)) for t in pytree.tree_leaves(build.example_inputs))
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
    check_finite(given.model)
    check_runs(given.model, given.example_inputs)
    kind = type(given.model).__name__
    return LoadedModel(given.model, given.example_inputs, kind, f"<{kind}>", fingerprint(given.model))


def _classes(loaded: LoadedModel) -> int:
    """Number of outputs of a classifier: the length of the last axis of its first output."""
    module: Any = loaded.module if isinstance(loaded.module, nn.Module) else loaded.module.module()
    with torch.no_grad():
        output = next(leaf for leaf in pytree.tree_leaves(module(*loaded.example_inputs)) if isinstance(leaf, Tensor))
    return int(output.shape[-1])
