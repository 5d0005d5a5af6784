"""The pruned model in the user's own class, offered only where it computes what the pruned graph does."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploypruner.channels.proof.probes import probe
from deploypruner.channels.proof.removal import compare_modules
from deploypruner.errors import PlanError
from deploypruner.graph import Graph
from deploypruner.graph.capture.exportable_part import Holder
from deploypruner.graph.execute.module import TracedModule, get_state, set_state
from deploypruner.graph.inputs import Inputs, batch_size, call, map_tensors, tensors
from deploypruner.graph.largest_gap import magnitude, proving_gap
from deploypruner.graph.reference import seeded
from deploypruner.graph.rewrite.attention_scale import folds
from deploypruner.graph.rewrite.branch_stand_ins import stand_ins
from deploypruner.graph.rewrite.resize import Resized, owned_copy, state_names

# Of the largest output, in training mode: by precision, the second where the model's code insists on float32. In
# float64 a model that casts to float32 on its way leaves 1e-7.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
# A factor rounds float32 weights by 6e-8, the proof asks for 1e-11.
_ROUNDED = 1e5
_OFF = "in training mode outputs"
_HINT = "dp.remove gives the pruned model as a graph, which always works"


def own_class(graph: Graph, removed: NDArray[np.bool_], model: nn.Module, pruned: nn.Module) -> nn.Module:
    """A copy of `model` in its own class, without the removed channels.

    Args:
        graph: What tracing `model` gave.
        removed: Bool over atoms.
        model: The user's module; it is not changed.
        pruned: `graph.cut(removed)`, what the result must compute. The weights are taken from it; what it does not
            have (auxiliary heads, batch-norm counters) from `model`.

    Returns:
        A trainable module with the modes, hooks and `requires_grad` of `model`.

    Raises:
        PlanError: The class cannot have these sizes, or computes something else; says what and how far off.
    """
    if graph.part:
        part = own_class(
            replace(graph, part=""), removed, Holder(graph.part, model.get_submodule(graph.part)), pruned
        )
        return owned_copy(model, instead={graph.part: part.get_submodule(graph.part)})
    if graph.front_end == "torch-pruning":
        resized = Resized(model, graph.labelling, removed)
        module = next(resized.variants())
        _fill(module, pruned)
        return _same_modes(module, model)
    reasons = []
    for instead in stand_ins(model, graph.labelling, removed):
        resized = Resized(model, graph.labelling, removed, instead=instead)
        _fill(resized.module, pruned)
        scaled = folds(graph.labelling, removed)
        for fold in scaled:
            fold.apply(resized.module)
        for module in resized.variants():
            reason = difference(module, pruned, graph, rounded=bool(scaled))
            if not reason:
                return _same_modes(module, model)
            reasons.append(reason)
    name = type(model.get_submodule(model.name) if isinstance(model, Holder) else model).__name__
    raise PlanError(f"{name} cannot take the sizes of this plan: {reasons[0]}", hint=_HINT)


def in_place_of_part(graph: Graph, removed: NDArray[np.bool_], pruned: nn.Module, *, as_graph: bool) -> nn.Module:
    """The whole model in eval mode, its traced part replaced by the pruned one.

    Args:
        graph: A graph of a part.
        removed: Bool over atoms.
        pruned: `graph.cut(removed)`.
        as_graph: Put in the pruned graph, which takes inputs of the traced size only. Else the part's own class
            where it fits, and the graph where it does not.
    """
    assert graph.whole is not None, "a graph of a part knows the whole"
    if not as_graph:
        try:
            return own_class(graph, removed, graph.whole, pruned)
        except PlanError:
            pass
    return owned_copy(graph.whole, instead={graph.part: _rerooted(pruned, graph.part)}).eval()


def _rerooted(pruned: nn.Module, name: str) -> nn.Module:
    """The graph of a part as a module whose state has the names it has inside the part."""
    assert isinstance(pruned, TracedModule), "only an exported graph has reads of state to rename"
    inner = pruned.get_submodule(name)
    for node in pruned.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        if target.startswith(f"{name}."):
            node.target = target.removeprefix(f"{name}.")
        else:  # a constant that export lifted out of the code
            set_state(inner, target, get_state(pruned, target))
    return TracedModule(inner, pruned.graph)


def _fill(module: nn.Module, pruned: nn.Module) -> None:
    """Copy the state of the pruned graph into a module of the same sizes, name by name."""
    with torch.no_grad():
        known = {name: tensor for tensor, names in state_names(pruned).values() for name in names}
        for tensor, names in state_names(module).values():
            found = next((known[name] for name in names if name in known), None)
            if found is not None and found.shape == tensor.shape:
                tensor.copy_(found)


def difference(module: nn.Module, pruned: nn.Module, graph: Graph, *, rounded: bool) -> str:
    """How a module differs from the pruned graph, in eval and in training mode; "" where it does not.

    With `rounded`, weights were multiplied by a factor and may differ in their last bit.
    """
    slack = _ROUNDED if rounded else 1
    inputs = graph.example_inputs
    cases = [inputs]
    if graph.dynamic_batch:
        cases.append(probe(inputs, batch_size(inputs) + 1, seed=1))
    for case in cases:
        check = compare_modules("your class = the pruned graph", module, pruned, case)
        if not check.passed and not check.max_abs_diff <= slack * check.tolerance:
            return (
                check.detail.replace("the first module raises", "it raises")
                or f"outputs are off by {check.max_abs_diff:.1e}, allowed {check.tolerance:.1e}"
            )
    reason = _training_difference(module, pruned, probe(inputs, None, seed=2), slack)
    # A graph that does not train as the model does is no judge of how the model's own class trains.
    return "" if graph.trains_differently and reason.startswith(_OFF) else reason


def _training_difference(module: nn.Module, pruned: nn.Module, inputs: Inputs, slack: float) -> str:
    """One forward pass in training mode with one seed: equal widths draw equal random numbers."""
    reason = ""
    for dtype, tolerance in _TOLERANCE.items():
        case = map_tensors(partial(_in, dtype=dtype), inputs)
        found, drawn = [], False
        try:
            for form in (module, pruned):
                own = owned_copy(form).to(dtype).train()
                with torch.no_grad(), seeded(case, 0):
                    before = torch.get_rng_state()
                    found.append(call(own, case))
                    drawn = drawn or not torch.equal(before, torch.get_rng_state())
            off = _off(found[0], found[1], min(slack * tolerance, _TOLERANCE[torch.float32]))
        except Exception as error:  # noqa: BLE001 - the user's forward raises anything when a size is wrong
            reason = f"in training mode: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            continue
        reason = f"in training mode {off}" if off else ""
        if not (off and drawn):  # code that names a data type draws other numbers in another
            break
    return reason


def _off(got: Any, want: Any, tolerance: float) -> str:
    """What differs between two outputs; a model may well give other tensors in training mode than in eval."""
    left, right = tensors(got), tensors(want)
    if [t.shape for t in left] != [t.shape for t in right]:
        return ""
    for a, b in zip(left, right, strict=True):
        gap, scale = proving_gap(a, b), magnitude(b)
        if not gap <= tolerance * scale:
            return f"outputs are off by {gap:.1e}, the largest is {scale:.1e}"
    return ""


def _in(tensor: Tensor, *, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _same_modes(module: nn.Module, model: nn.Module) -> nn.Module:
    before = dict(model.named_modules(remove_duplicate=False))
    for name, new in module.named_modules(remove_duplicate=False):
        new.training = before[name].training
    return module
