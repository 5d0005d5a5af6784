"""Random plans and their proofs."""

from __future__ import annotations

import numpy as np
from torch import nn

from deploypruner.channels.allocate import make_plan
from deploypruner.channels.plan import Plan
from deploypruner.channels.proof.removal import prove
from deploypruner.graph import Graph
from deploypruner.records import Check


def random_plan(graph: Graph, seed: int) -> Plan:
    """Remove a third of every group at random: heads and columns alike, and channels that change a statistic."""
    rng = np.random.default_rng(seed)
    keep = {g.id: np.sort(rng.choice(g.size, g.size - max(1, g.size // 3), replace=False)) for g in graph.groups}
    for group_id, channels in graph.emptied(keep).items():
        keep[group_id] = np.union1d(keep[group_id], sorted(channels))
    return make_plan(graph, keep, criterion="random", scope="uniform", step=1)


def proved(graph: Graph, plan: Plan) -> tuple[nn.Module, tuple[Check, ...]]:
    module = graph.cut(graph.removed(plan.keep))
    return module, prove(graph, plan, module)
