"""What every model must satisfy before work starts, and the number that identifies it."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.graph.capture.input_checks import check_dense, check_finite, check_float, state_tensors
from deploypruner.graph.inputs import Inputs, call, described, raw_bytes
from deploypruner.sources.foreign import first_line, foreign
from deploypruner.sources.room import check_room

__all__ = ["check_dense", "check_finite", "check_float", "check_runs", "fingerprint", "to_cpu_float32"]


def fingerprint(module: nn.Module | ExportedProgram) -> str:
    """Return the sha256 (hex) over the sorted state dict: names, dtypes, shapes and bytes.

    Independent of the device and of the order in which layers were created.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state_tensors(module), key=lambda item: item[0]):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def to_cpu_float32(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module on the CPU in float32, and a remark for each thing that had to change.

    The given module is returned as it is where nothing changes, and copied otherwise.
    """
    tensors = [tensor for _, tensor in state_tensors(module)]
    devices = sorted({str(t.device) for t in tensors} - {"cpu"})
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"})
    if not devices and not dtypes:
        return module, ()
    remarks = tuple(f"model moved from {', '.join(devices)} to the cpu" for _ in devices[:1])
    remarks += tuple(f"weights converted from {', '.join(dtypes)} to float32" for _ in dtypes[:1])
    return copy.deepcopy(module).to("cpu", torch.float32), remarks


def check_runs(module: nn.Module | ExportedProgram, example_inputs: Inputs) -> None:
    """Run a copy of the model once, in eval mode and without gradients.

    Raises:
        InputError: It cannot be copied, does not fit into the memory, or the run fails; names the input shapes and
            the layer.
    """
    with (
        foreign("the model cannot be copied:", hint="keep only parameters, buffers and plain values on it"),
        _quiet(),
    ):
        twin = copy.deepcopy(module.module() if isinstance(module, ExportedProgram) else module)
    check_room(twin, example_inputs)
    entered: list[str] = []
    for name, layer in twin.named_modules():
        label = f"layer '{name}' ({type(layer).__name__})" if name else type(layer).__name__
        layer.register_forward_pre_hook(lambda _layer, _args, label=label: entered.append(label))
        layer.register_forward_hook(lambda _layer, _args, _out: entered.pop() and None)
    try:
        with foreign("raised"), torch.no_grad():
            call(twin, example_inputs)
    except InputError as error:
        cause = error.__cause__ or error
        where = entered[-1] if entered else type(twin).__name__
        raise InputError(
            f"the model cannot run on an input of shape {described(example_inputs)}: {where}: {first_line(cause)}",
            hint="give the shape it takes with --input-shape 1,3,224,224 (one per input); "
            "a .pt2 file carries its own example inputs",
        ) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of torch about its own types, which copying a program brings up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
