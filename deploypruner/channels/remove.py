"""Remove channels physically, and hand nothing over that was not proved."""

from __future__ import annotations

from torch import nn

from deploypruner.channels.own_class import in_place_of_part
from deploypruner.channels.plan import Plan
from deploypruner.channels.proof.removal import prove
from deploypruner.errors import VerificationError
from deploypruner.graph import Graph
from deploypruner.records import Check


def remove(graph: Graph, plan: Plan) -> nn.Module:
    """Return a new, smaller, trainable module in eval mode; neither graph nor user model is touched.

    Where only a part of the model could be traced, the module is the whole model with that part pruned.

    Args:
        graph: Graph of the dense model, from `trace`.
        plan: Plan for this graph: which channels stay, and which residual branches go.

    Raises:
        PlanError: The plan belongs to another model.
        VerificationError: Masked and removed outputs disagree (our bug; nothing wrong is returned). The message
            names the first operator that differs.
    """
    module, checks = remove_and_prove(graph, plan)
    require(checks)
    if graph.part:
        return in_place_of_part(graph, graph.removed(plan.keep), module, as_graph=False)
    return module


def remove_and_prove(graph: Graph, plan: Plan) -> tuple[nn.Module, tuple[Check, ...]]:
    """Like `remove`, but hand over the proof instead of raising; of a traced part, hand over that part alone."""
    plan.check(graph)
    module = graph.cut(graph.removed(plan.keep)).eval()
    return module, prove(graph, plan, module)


def require(checks: tuple[Check, ...]) -> None:
    """Make sure that every check passed.

    Raises:
        VerificationError: One did not; says by how much and where the forms first differ.
    """
    for check in checks:
        if not check.passed:
            by = f"max |difference| {check.max_abs_diff:.2e}, allowed {check.tolerance:.2e}; "
            raise VerificationError(
                f"{check.name}: {by if check.tolerance else ''}{check.detail}",
                hint="a rule of the dependency graph is wrong for this model; please report it",
            )
