"""Training with gates on channels, until exactly the plan's widths are left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from deploypruner.channels.feasible_widths import Order, find_room, most_important
from deploypruner.channels.plan import Plan
from deploypruner.channels.proof.masked_reference import removed_slices
from deploypruner.graph import Graph
from deploypruner.graph.execute.branch_gates import gate_name
from deploypruner.graph.execute.gates import gated
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.recipe.constraints import Constraints
from deploypruner.train.regime import Regime, under


@dataclass(frozen=True)
class Result:
    """What a training chose.

    Args:
        keep: Group id -> channels that stay; branch id -> nothing, of every residual branch that goes.
        undecided: Share of the channels whose mask was still between 0.05 and 0.95.
    """

    keep: Mapping[str, IntArray]
    undecided: float


class ChannelRegime(Regime):
    """What all ways to choose channels while training share; the graph's own module and weights are not touched.

    Groups that the plan leaves whole are left alone. So are those without a layer that a gate could be put on (their
    channels are computed, as in weight norm): they keep the channels the plan chose. Residual branches that the plan
    drops are gone from the first step on.

    Args:
        graph: The traced dense model; the student is a copy of its module.
        plan: Its widths are what training ends in.

    Attributes:
        chosen: Group id -> number of channels that stay, of the groups that are decided by training.
        branches: Ids of the residual branches that the student needs a gate for.
        result: What stays and how sure that was, once training is over.
    """

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.chosen = {
            g.id: len(g.keep) for g in plan.groups if len(g.keep) < g.size and graph.last_affines(graph.group(g.id))
        }
        self.branches: tuple[str, ...] = plan.dropped
        self.result: Result | None = None
        self.steps = 0
        self.parameters: dict[str, nn.Parameter] = {}

    def begin(self, student: nn.Module, steps: int) -> None:
        """Remember what is trained, and for how long."""
        self.steps = steps
        self.parameters = dict(student.named_parameters(remove_duplicate=False))

    @abstractmethod
    def soft(self) -> dict[str, Tensor]:
        """Group id -> masks `[C]` of the last step, without a gradient."""

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """Group id -> `[C]`, larger stays, if training ended now."""

    def gone(self) -> tuple[str, ...]:
        """Ids of the residual branches that are gone by now."""
        return self.plan.dropped

    def shut(self) -> dict[str, Tensor]:
        """Gates of the branches that are gone."""
        device = next(iter(self.parameters.values())).device
        return {gate_name(self.graph, branch): torch.zeros((), device=device) for branch in self.gone()}

    def keep(self) -> dict[str, IntArray]:
        """Group or branch id -> what stays if training ended now: exactly the plan's widths."""
        given = {g.id: np.array(g.keep, dtype=np.int64) for g in self.plan.groups}
        values = self.values()
        order = {
            g: torch.argsort(values[g], descending=True, stable=True).cpu().numpy()
            if g in values
            else np.concatenate([kept, np.setdiff1d(np.arange(self.graph.group(g).size), kept)])
            for g, kept in given.items()
        }
        widths = {g: len(kept) for g, kept in given.items()}
        return settled(self.graph, order, widths) | nothing_of(self.gone())

    def soft_weights(self) -> dict[str, Tensor]:
        """Parameters with the masks of the last step in them: the network that was trained."""
        soft = {g: mask.to(next(iter(self.parameters.values())).device) for g, mask in self.soft().items()}
        return {name: w.detach() for name, w in gated(self.graph, self.parameters, soft).items()} | self.shut()

    def hard_weights(self) -> dict[str, Tensor]:
        """Parameters in which everything that goes is zero; what stays keeps the rest of its mask, about 1."""
        held = {name: parameter.detach() for name, parameter in self.parameters.items()}
        soft = self.soft_weights()
        return {**soft, **closed(self.graph, {**held, **soft}, self.keep())}

    def undecided(self) -> float:
        """Share of the channels whose masks were between 0.05 and 0.95 when they were made hard."""
        return 0.0

    def state(self) -> dict[str, Tensor]:
        """The result, once there is one: another process may have trained."""
        if self.result is None:
            return {}
        kept = {f"result.keep.{g}": torch.as_tensor(keep) for g, keep in self.result.keep.items()}
        return kept | {"result.undecided": torch.tensor(self.result.undecided, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it over."""
        kept = {g: keep.cpu().numpy() for g, keep in under(state, "result.keep.").items()}
        self.result = Result(kept, float(state["result.undecided"])) if kept else None

    def finish(self, student: nn.Module) -> None:
        """Decide, then zero everything that goes; afterwards magnitudes would say something else."""
        self.result = Result(self.keep(), self.undecided())
        super().finish(student)

    def describe(self) -> str:
        """Widths and everything of the subclass that decides the result."""
        return f"{type(self).__name__} {sorted(self.chosen.items())} {self.plan.groups} {self.plan.dropped}"


def nothing_of(branches: Iterable[str]) -> dict[str, IntArray]:
    """Branch id -> nothing: how a plan says that a branch is gone."""
    return {branch: np.empty(0, np.int64) for branch in branches}


def settled(graph: Graph, order: Order, widths: Mapping[str, int]) -> dict[str, IntArray]:
    """The first channels of every group, except where that would leave a tensor without an index.

    Args:
        graph: The traced model.
        order: Group id -> all its channels, the most important first.
        widths: Group id -> how many stay.

    Raises:
        PlanError: These widths leave some tensor without an index whatever stays.
    """
    whole = Constraints(max_cut=0, statistics="keep")
    room, _ = find_room(graph, order, whole, step=1, cost=lambda _: 0.0, fixed=widths)
    return most_important(room.order, widths)


def closed(graph: Graph, weights: Mapping[str, Tensor], keep: Mapping[str, IntArray]) -> dict[str, Tensor]:
    """Parameters with zeros wherever a channel goes, in what writes it and in what reads it; differentiable.

    Only those that change. What is divided by its own norm keeps its values, which zeros elsewhere make irrelevant.

    Args:
        graph: The traced model.
        weights: Parameter name -> tensor.
        keep: Group id -> channels that stay.
    """
    found: dict[str, Tensor] = {}
    for name, cuts in removed_slices(graph, keep).items():
        if name not in weights or name in graph.labelling.directions:
            continue
        tensor = weights[name]
        for axis, rows in cuts:
            tensor = tensor.index_fill(axis, rows.to(tensor.device), 0)
        found[name] = tensor
    return found
