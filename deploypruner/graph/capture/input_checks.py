"""What a model must be before it is traced: plain, dense, finite tensors that can be cut and trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.errors import InputError

_RUNNING_STATISTICS = ("running_mean", "running_var")
_PACKED_MODULES = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.sparse",
    "torch.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
)
_QUANTIZED_OPERATORS = (
    *("quantized_decomposed.", "quantized.", "torchao.", "onednn.q"),
    *("aten.quantize_per_", "aten.fake_quantize_per_"),
)


def check_model(model: object) -> None:
    """Check all of the below.

    Raises:
        InputError: Not a module or program, or one that cannot be pruned; names the layer or parameter.
    """
    if not isinstance(model, nn.Module | ExportedProgram):
        raise InputError(
            f"a {type(model).__name__} was given, not a model", hint="pass an nn.Module or a torch.export program"
        )
    if isinstance(model, nn.Module):
        check_dense(model)
    check_float(model)
    check_finite(model)


def check_finite(module: nn.Module | ExportedProgram) -> None:
    """Check that no parameter holds NaN or Inf, no buffer NaN, and no running statistic Inf.

    Inf is allowed in other buffers: attention masks are made of it.

    Raises:
        InputError: Names the first such tensor, how many of its elements are bad, and how many tensors are.
    """
    parameters = {name for name, _ in module.named_parameters()}
    bad: list[tuple[str, int, int]] = []
    for name, tensor in state_tensors(module):
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        strict = name in parameters or name.endswith(_RUNNING_STATISTICS)
        # A finite sum proves every term finite, ten times faster than looking at each of them.
        if torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))):
            continue
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


def check_float(module: nn.Module | ExportedProgram) -> None:
    """Check that a traced graph rounds to no integers: a layer's channels cannot be followed through that.

    Raises:
        InputError: It does; names the operation.
    """
    graph = getattr(module, "graph", None)
    if not isinstance(graph, torch.fx.Graph):
        return
    for node in graph.nodes:
        target = str(node.target)
        if node.op == "call_function" and target.startswith(_QUANTIZED_OPERATORS):
            raise InputError(
                f"the model is int8 already: '{node.name}' is {target}",
                hint="give the float model; deploypruner quantizes after pruning",
            )


def check_dense(module: nn.Module) -> None:
    """Check that weights are plain dense tensors that can be cut and retrained.

    Raises:
        InputError: A scripted, lazy, quantized, sparse, packed, masked or empty layer, by name.
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


def state_tensors(module: nn.Module | ExportedProgram) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything a state dict holds."""
    state = module.state_dict if isinstance(module, ExportedProgram) else module.state_dict()
    return ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def _has_mask(module: nn.Module, name: str) -> bool:
    """Whether torch.nn.utils.prune left `<name>_orig` and `<name>_mask` in place of a weight."""
    owner, _, leaf = name.rpartition(".")
    return leaf.endswith("_orig") and hasattr(module.get_submodule(owner), f"{leaf.removesuffix('_orig')}_mask")


def _check_plain(name: str, tensor: Tensor, *, masked: bool) -> None:
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        raise InputError(f"'{name}' has no shape yet", hint="run the lazy layers once before giving the model")
    if tensor.is_meta:
        raise InputError(
            f"'{name}' is on the meta device and has no values", hint="load the weights before giving the model"
        )
    if masked:
        leaf = name.rpartition(".")[2].removesuffix("_orig")
        raise InputError(
            f"'{name}' is masked by torch.nn.utils.prune",
            hint=f"make it permanent with torch.nn.utils.prune.remove(module, '{leaf}')",
        )
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if tensor.is_quantized or tensor.layout != torch.strided or not plain:
        kind = "quantized" if tensor.is_quantized else "sparse" if plain else type(tensor).__name__
        raise InputError(
            f"'{name}' is not a plain dense tensor but {kind}",
            hint="give the dense float model; deploypruner prunes and quantizes it",
        )
    if isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex()):
        raise InputError(
            f"'{name}' is {str(tensor.dtype).removeprefix('torch.')}: the model is already quantized",
            hint="give the float model; deploypruner quantizes after pruning",
        )
