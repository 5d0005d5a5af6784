"""MODEL as the user typed it -> a checked nn.Module or exported program with example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, described
from deploypruner.ranges import check_shape
from deploypruner.sources.classes import names_in, names_in_checkpoint
from deploypruner.sources.factory import load_factory, random_weights
from deploypruner.sources.found import FoundModel, ModelRequest, Shapes
from deploypruner.sources.matched import argument_names, input_names
from deploypruner.sources.named import ModelKind, model_kind, require_takes_weights
from deploypruner.sources.pickle_file import load_pickled
from deploypruner.sources.preprocessing import Preprocessing
from deploypruner.sources.program_file import load_program
from deploypruner.sources.soundness import (
    check_dense,
    check_finite,
    check_float,
    check_runs,
    fingerprint,
    to_cpu_float32,
)
from deploypruner.sources.state_dict import load_weights
from deploypruner.sources.zoo import load_timm, load_torchvision, load_transformers

__all__ = ["LoadedModel", "Preprocessing", "check_finite", "fingerprint", "load_model"]

# Inputs of which every order is tried, to say in which a model runs.
_FEW_INPUTS = 4

Loader = Callable[[ModelRequest], FoundModel]

_LOADERS: dict[ModelKind, Loader] = {
    ModelKind.PROGRAM: load_program,
    ModelKind.PICKLE: load_pickled,
    ModelKind.TIMM: load_timm,
    ModelKind.TORCHVISION: load_torchvision,
    ModelKind.TRANSFORMERS: load_transformers,
    ModelKind.FACTORY: load_factory,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model that runs on its example inputs, on the CPU in float32.

    Args:
        module: nn.Module in eval mode, or an ExportedProgram.
        example_inputs: One tensor per input, batch dimension first, by position or by keyword; the same values on
            every load.
        name: Short title: file stem, factory or zoo name.
        source: MODEL as typed.
        sha256: `fingerprint(module)`.
        preprocessing: How the source says its images are prepared; None where it says nothing.
        remarks: What was changed on the way in, one sentence each.
        task: What the source says the first output is, "" where it does not say.
        classes: Names of the classes of that output, in their order; none where nobody says.
    """

    module: nn.Module | ExportedProgram
    example_inputs: Inputs
    name: str
    source: str
    sha256: str
    preprocessing: Preprocessing | None = None
    remarks: tuple[str, ...] = ()
    task: str = ""
    classes: tuple[str, ...] = ()


def load_model(
    source: str,
    *,
    weights: Path | None = None,
    input_shapes: Shapes | None = None,
    trust_pickle: bool = False,
    data_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> LoadedModel:
    """Load and check the model that `source` names.

    Args:
        source: `file.pt2`, `file.pt`, `package.module:factory`, `timm:NAME`, `torchvision:NAME` or
            `transformers:DIR_OR_NAME`; the last three take `?pretrained=0` and `?num_classes=10`.
        weights: Weight file for a factory's or zoo's model, see `load_weights`.
        input_shapes: Shape of each input, batch included.
        trust_pickle: Allow a .pt file to run the code inside it.
        data_shapes: Shape of one sample of the data for each of its inputs, see `peek_shapes`; used where nothing
            else gives the input shapes.

    Returns:
        The model; random weights and example inputs are the same on every call.

    Raises:
        InputError: Anything that makes the model unusable, in the user's names and numbers.
    """
    request = ModelRequest(source, weights, input_shapes, trust_pickle)
    kind = model_kind(source)
    if weights is not None:
        require_takes_weights(kind, source, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = _LOADERS[kind](request)
    module = found.module
    remarks: tuple[str, ...] = ()
    if isinstance(module, nn.Module):
        if weights is not None:
            remarks = load_weights(module, weights)
        check_dense(module)
        if weights is None and kind is ModelKind.FACTORY:
            with torch.random.fork_rng(devices=[]):
                remarks = random_weights(module, request)
        module, changed = to_cpu_float32(module)
        remarks += changed
        module.eval()
    check_float(module)
    check_finite(module)
    example_inputs = found.example_inputs or _example_inputs(found, request, data_shapes or {})
    try:
        check_runs(module, example_inputs)
    except InputError:
        whole = None if found.example_inputs else _with_integers(module, example_inputs)
        if whole is None:
            right = _other_order(module, example_inputs)
            if right is None:
                raise
            raise _wrong_order(module, example_inputs, right, asked=input_shapes is not None) from None
        example_inputs = whole
        remarks += ("the model takes whole numbers: its example inputs are zeros and ones",)
    return LoadedModel(
        module=module,
        example_inputs=example_inputs,
        name=found.name,
        source=source,
        sha256=fingerprint(module),
        preprocessing=found.preprocessing,
        remarks=remarks,
        task=found.task,
        classes=found.classes or names_in(module) or names_in_checkpoint(weights),
    )


def _example_inputs(found: FoundModel, request: ModelRequest, data_shapes: Mapping[str, tuple[int, ...]]) -> Inputs:
    shapes = request.input_shapes
    if shapes is None and found.input_shape is not None:
        shapes = (found.input_shape,)
    if shapes is None and "" in data_shapes:
        shapes = ((1, *data_shapes[""]),)
    if shapes is None and isinstance(found.module, nn.Module):
        arguments = argument_names(found.module)
        taken = [name for name in arguments if name in data_shapes] or list(data_shapes)[: len(arguments)]
        shapes = tuple((1, *data_shapes[name]) for name in taken if name in arguments or name.isdigit()) or None
    if shapes is None:
        raise InputError(
            f"the input shape of '{request.source}' is not known", hint="give it with --input-shape 1,3,224,224"
        )
    for shape in shapes:
        check_shape("--input-shape", shape, hint="--input-shape 1,3,224,224")
    generator = torch.Generator().manual_seed(0)
    if found.integers_below:
        return tuple(torch.randint(0, found.integers_below, shape, generator=generator) for shape in shapes)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def _other_order(module: nn.Module | ExportedProgram, inputs: Inputs) -> tuple[Tensor, ...] | None:
    """The same inputs in the order in which the model runs on them; None where it does in none, or there are many."""
    if isinstance(inputs, dict) or not 1 < len(inputs) <= _FEW_INPUTS:
        return None
    for order in list(permutations(inputs))[1:]:
        with suppress(InputError):
            check_runs(module, order)
            return order
    return None


def _wrong_order(
    module: nn.Module | ExportedProgram, given: Inputs, right: tuple[Tensor, ...], *, asked: bool
) -> InputError:
    names = input_names(module, right) or tuple(f"input {i}" for i in range(len(right)))
    shapes = [list(t.shape) for t in right]
    told = " and ".join(f"{shape} as '{name}'" for shape, name in zip(shapes, names, strict=True))
    options = " ".join(f"--input-shape {','.join(map(str, shape))}" for shape in shapes)
    order = f"yield (({', '.join(names)}), labels), with None where there are no labels"
    return InputError(
        f"the model cannot run on inputs of shape {described(given)} in this order; it takes {told}",
        hint=options if asked else order,
    )


def _with_integers(module: nn.Module | ExportedProgram, inputs: Inputs) -> Inputs | None:
    """Zeros and ones in the place of some floats, so that the model runs: a table is looked up. None: never."""
    generator = torch.Generator().manual_seed(0)
    values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
    for whole in sorted(product((True, False), repeat=len(values)), key=lambda case: not all(case)):
        tried = [
            torch.randint(0, 2, t.shape, generator=generator) if i else t for t, i in zip(values, whole, strict=True)
        ]
        with suppress(InputError):
            given: Inputs = dict(zip(inputs, tried, strict=True)) if isinstance(inputs, dict) else tuple(tried)
            check_runs(module, given)
            return given
    return None
