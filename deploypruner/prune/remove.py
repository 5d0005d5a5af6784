"""Remove channels physically, and prove it: masked and removed outputs agree in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.errors import VerificationError
from deploypruner.graph import Graph
from deploypruner.graph.inputs import Inputs, call
from deploypruner.graph.module import get_state
from deploypruner.prune.plan import Plan
from deploypruner.records import Check

# Of the largest output. float64 rounding over a deep network is 1e-15 to 1e-13, a wrong index gives 1e-1.
_TOLERANCE = 1e-11


def remove(graph: Graph, plan: Plan) -> nn.Module:
    """Return a new, smaller, trainable module in eval mode; neither graph nor user model is touched.

    Raises:
        PlanError: The plan belongs to another model.
        VerificationError: Masked and removed outputs disagree (our bug; nothing wrong is returned).
    """
    module, checks = remove_and_prove(graph, plan)
    for check in checks:
        if not check.passed:
            raise VerificationError(
                f"{check.name}: max |difference| {check.max_abs_diff:.2e}, allowed {check.tolerance:.2e}",
                hint="a rule of the dependency graph is wrong for this model; please report it",
            )
    return module


def remove_and_prove(graph: Graph, plan: Plan) -> tuple[nn.Module, tuple[Check, ...]]:
    """Like `remove`, but hand over the proof instead of raising."""
    plan.check(graph)
    module = graph.cut(graph.removed(plan.keep))
    return module, prove(graph, plan, module)


def prove(graph: Graph, plan: Plan, module: nn.Module) -> tuple[Check, ...]:
    """Compare the dense graph with every removed parameter slice set to zero to the module without them.

    Both run in float64 on the example inputs with noise added (a batch of equal samples proves little) and, where
    the batch is dynamic, on another batch size.
    """
    masked, removed = _double(mask(graph, plan)), _double(module)
    generator = torch.Generator().manual_seed(0)
    inputs = pytree.tree_map_only(Tensor, lambda t: _noisy_double(t, generator), graph.example_inputs)
    cases = [("masked = removed (float64)", inputs)]
    if graph.dynamic_batch:
        cases.append(("masked = removed (float64, batch + 1)", pytree.tree_map_only(Tensor, _one_more, inputs)))
    return tuple(_compare(name, masked, removed, case) for name, case in cases)


def mask(graph: Graph, plan: Plan) -> nn.Module:
    """A copy of the dense graph in which every slice the plan removes is zero, in producers and consumers.

    Only parameters that nothing divides by are zeroed: not running statistics, not the direction of a weight norm.
    """
    module = copy.deepcopy(graph.module)
    keep = plan.keep
    with torch.no_grad():
        for group in graph.groups:
            gone = np.setdiff1d(np.arange(group.size), keep[group.id])
            for member in group.members:
                tensor = get_state(module, member.parameter)
                if isinstance(tensor, nn.Parameter) and member.parameter not in graph.labelling.directions:
                    tensor.index_fill_(member.axis, torch.as_tensor(member.index[gone].reshape(-1)), 0)
    return module


def _compare(name: str, masked: nn.Module, removed: nn.Module, inputs: Inputs) -> Check:
    with torch.no_grad():
        wanted, got = (_tensors(call(m, inputs)) for m in (masked, removed))
    scale = max(float(t.abs().max()) for t in wanted)
    difference = max(float((a - b).abs().max()) for a, b in zip(wanted, got, strict=True))
    # A network whose output hardly depends on its input would pass any comparison; say how much it does.
    signal = max(float((t - t[:1]).abs().max()) for t in wanted) / max(scale, torch.finfo(torch.float64).tiny)
    tolerance = _TOLERANCE * scale
    return Check(
        name, difference, tolerance, difference <= tolerance, f"outputs differ by {signal:.0e} between inputs"
    )


def _tensors(output: Any) -> list[Tensor]:
    return [t.double() for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]


def _double(module: nn.Module) -> nn.Module:
    """A copy in float64, including the dtypes that export wrote into the graph (casts, new tensors)."""
    module = copy.deepcopy(module).double().eval()
    for node in module.graph.nodes:
        node.args = pytree.tree_map_only(torch.dtype, _wider, node.args)
        node.kwargs = pytree.tree_map_only(torch.dtype, _wider, node.kwargs)
    module.recompile()
    return module


def _wider(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _noisy_double(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    spread = float(tensor.double().std(correction=0)) or 1.0
    return tensor.double() + spread * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def _one_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor
