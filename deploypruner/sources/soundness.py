"""What every model must satisfy before work starts, and the number that identifies it."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.sources.foreign import first_line, foreign

_RUNNING_STATISTICS = ("running_mean", "running_var")
_PACKED_MODULES = ("torch.ao.nn.quantized", "torch.ao.nn.sparse", "torch.nn.quantized")


def fingerprint(module: nn.Module | ExportedProgram) -> str:
    """Return the sha256 (hex) over the sorted state dict: names, dtypes, shapes and bytes.

    Independent of the device and of the order in which layers were created.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(module)):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_finite(module: nn.Module | ExportedProgram) -> None:
    """Check that no parameter holds NaN or Inf, no buffer NaN, and no running statistic Inf.

    Inf is allowed in other buffers: attention masks are made of it.

    Raises:
        InputError: Names the first such tensor, how many of its elements are bad, and how many tensors are.
    """
    parameters = _parameter_names(module)
    bad: list[tuple[str, int, int]] = []
    for name, tensor in _tensors(module):
        if not tensor.is_floating_point():
            continue
        strict = name in parameters or name.endswith(_RUNNING_STATISTICS)
        count = int((~torch.isfinite(tensor) if strict else torch.isnan(tensor)).sum())
        if count:
            bad.append((name, count, tensor.numel()))
    if bad:
        name, count, total = bad[0]
        others = f" (and {len(bad) - 1} more tensors)" if len(bad) > 1 else ""
        raise InputError(
            f"'{name}' holds {count} NaN or Inf among its {total} elements{others}",
            hint="training diverged or the file is damaged; use an earlier checkpoint",
        )


def check_dense(module: nn.Module) -> None:
    """Check that weights are plain dense tensors that can be cut and retrained.

    Raises:
        InputError: A scripted, lazy, quantized, sparse, packed or masked layer, by name.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("the model is a TorchScript module", hint="give the nn.Module it was scripted from")
    for name, layer in module.named_modules():
        if type(layer).__module__.startswith(_PACKED_MODULES):
            raise InputError(
                f"layer '{name}' ({type(layer).__name__}) is already quantized or packed",
                hint="give the float model; deploypruner quantizes after pruning",
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        _check_plain(name, tensor, masked=_has_mask(module, name))


def to_cpu_float32(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module on the CPU in float32, and a remark for each thing that had to change.

    The given module is returned as it is where nothing changes, and copied otherwise.
    """
    tensors = [tensor for _, tensor in _tensors(module)]
    devices = sorted({str(t.device) for t in tensors} - {"cpu"})
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"})
    if not devices and not dtypes:
        return module, ()
    remarks = tuple(f"model moved from {', '.join(devices)} to the cpu" for _ in devices[:1])
    remarks += tuple(f"weights converted from {', '.join(dtypes)} to float32" for _ in dtypes[:1])
    return copy.deepcopy(module).to("cpu", torch.float32), remarks


def check_runs(module: nn.Module | ExportedProgram, example_inputs: tuple[Tensor, ...]) -> None:
    """Run a copy of the model once, in eval mode and without gradients.

    Raises:
        InputError: It cannot be copied, or the run fails; names the input shapes and the layer.
    """
    with (
        foreign("the model cannot be copied:", hint="keep only parameters, buffers and plain values on it"),
        _quiet(),
    ):
        twin = copy.deepcopy(module.module() if isinstance(module, ExportedProgram) else module)
    entered: list[str] = []
    for name, layer in twin.named_modules():
        label = f"layer '{name}' ({type(layer).__name__})" if name else type(layer).__name__
        layer.register_forward_pre_hook(lambda _layer, _args, label=label: entered.append(label))
        layer.register_forward_hook(lambda _layer, _args, _out: entered.pop() and None)
    shapes = ", ".join(str(list(value.shape)) for value in example_inputs)
    try:
        with foreign("raised"), torch.no_grad():
            twin(*example_inputs)
    except InputError as error:
        cause = error.__cause__ or error
        where = entered[-1] if entered else type(twin).__name__
        raise InputError(
            f"the model cannot run on an input of shape {shapes}: {where}: {first_line(cause)}",
            hint="give the shape it takes with --input-shape 1,3,224,224 (one per input); "
            "a .pt2 file carries its own example inputs",
        ) from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of torch about its own types, which copying a program brings up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tensors(module: nn.Module | ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    state = module.state_dict if isinstance(module, ExportedProgram) else module.state_dict()
    return ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def _parameter_names(module: nn.Module | ExportedProgram) -> set[str]:
    return {name for name, _ in module.named_parameters()}


def _has_mask(module: nn.Module, name: str) -> bool:
    """Whether torch.nn.utils.prune left `<name>_orig` and `<name>_mask` in place of a weight."""
    owner, _, leaf = name.rpartition(".")
    return leaf.endswith("_orig") and hasattr(module.get_submodule(owner), f"{leaf.removesuffix('_orig')}_mask")


def _check_plain(name: str, tensor: Tensor, *, masked: bool) -> None:
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise InputError(f"'{name}' has no shape yet", hint="run the lazy layers once before giving the model")
    if masked:
        raise InputError(
            f"'{name}' is masked by torch.nn.utils.prune", hint="make it permanent with torch.nn.utils.prune.remove"
        )
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if tensor.is_quantized or tensor.layout != torch.strided or not plain:
        kind = "quantized" if tensor.is_quantized else "sparse" if plain else type(tensor).__name__
        raise InputError(
            f"'{name}' is not a plain dense tensor but {kind}",
            hint="give the dense float model; deploypruner prunes and quantizes it",
        )
