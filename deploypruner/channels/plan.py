"""Which channels stay, in a form that can be saved, checked against a model and applied again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from deploypruner.channels.apply import apply_plan
from deploypruner.channels.plan_fields import kept_channels, members, number, text, texts
from deploypruner.errors import PlanError
from deploypruner.figures import scaled
from deploypruner.graph import Graph
from deploypruner.graph.inputs import to_json
from deploypruner.notebook import html_table
from deploypruner.records import Group

FORMAT = 3
# Plans of this format had no branches.
_WIDTHS_ONLY = 2


@dataclass(frozen=True)
class GroupPlan:
    """What stays of one group.

    Args:
        id: Group id.
        size: Channels before.
        keep: Channels that stay, ascending, at least one.
        members: (parameter, axis, positions per channel) of every member, to recognise the model.
    """

    id: str
    size: int
    keep: tuple[int, ...]
    members: tuple[tuple[str, int, int], ...]

    def __repr__(self) -> str:
        return f"GroupPlan({self.id!r}, {self.size} -> {len(self.keep)} channels)"


@dataclass(frozen=True)
class Plan:
    """A pruning plan for one model.

    Args:
        groups: Every prunable group of the model.
        criterion: Registered name.
        scope: "uniform" or "global".
        step: Widths were rounded to multiples of this.
        inputs: Example inputs the model was traced with, as `graph.inputs.to_json` describes them.
        macs_before: Predicted multiply-adds of one sample, dense.
        macs_after: The same after removal.
        params_before: Parameters of the inference graph, dense.
        params_after: The same after removal.
        part: Name of the only sub-module that was traced, "" for the whole model.
        dropped: Ids of the residual branches that go, in the order of the graph; groups inside them are whole here.
    """

    groups: tuple[GroupPlan, ...]
    criterion: str
    scope: str
    step: int
    inputs: Any
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    part: str = ""
    dropped: tuple[str, ...] = ()

    def __repr__(self) -> str:
        narrower = sum(len(group.keep) < group.size for group in self.groups)
        gone = f", {len(self.dropped)} residual branches gone" if self.dropped else ""
        return (
            f"Plan({narrower} of {len(self.groups)} groups narrower{gone}, {scaled(self.macs_before)} -> "
            f"{scaled(self.macs_after)} MACs ({self.macs_after / max(1, self.macs_before):.3f}), "
            f"{scaled(self.params_before)} -> {scaled(self.params_after)} parameters, by {self.criterion}, "
            f"{self.scope})"
        )

    def _repr_html_(self) -> str:
        """In a notebook: what stays of every group, and the branches that go."""
        rows = [(group.id, group.size, len(group.keep)) for group in self.groups]
        return html_table(
            repr(self), ("group", "channels", "stay"), [*rows, *((b, "branch", 0) for b in self.dropped)]
        )

    @property
    def keep(self) -> Mapping[str, NDArray[np.int64]]:
        """Group id -> kept channels; id of a branch that goes -> nothing."""
        kept = {g.id: np.array(g.keep, dtype=np.int64) for g in self.groups}
        return kept | {branch: np.empty(0, np.int64) for branch in self.dropped}

    def check(self, graph: Graph) -> None:
        """Make sure that this plan was made for this model.

        Raises:
            PlanError: Names the first group or member that differs.
        """
        hint = "apply a plan only to the model it was made for, with the same input shape"
        theirs = {g.id: g for g in graph.groups}
        for mine in self.groups:
            if mine.id not in theirs:
                raise PlanError(f"the plan prunes '{mine.id}', which this model does not have", hint=hint)
            group = theirs[mine.id]
            if group.size != mine.size:
                raise PlanError(
                    f"'{mine.id}' has {group.size} channels in this model and {mine.size} in the plan", hint=hint
                )
            if members_of(group) != mine.members:
                raise PlanError(_first_difference(mine, members_of(group)), hint=hint)
        if len(theirs) != len(self.groups):
            extra = next(i for i in theirs if i not in {g.id for g in self.groups})
            raise PlanError(f"this model has a group '{extra}' that the plan does not know", hint=hint)
        for group_id, emptied in graph.emptied({g.id: np.array(g.keep) for g in self.groups}).items():
            raise PlanError(
                f"the plan leaves some tensor without any index: channel {min(emptied)} of '{group_id}' has to stay",
                hint="compile the model again",
            )
        branches = {branch.id for branch in graph.branches}
        for name in self.dropped:
            if name not in branches:
                raise PlanError(f"the plan drops the branch '{name}', which this model does not have", hint=hint)

    def apply_to(self, model: nn.Module, example_inputs: Any = None) -> nn.Module:
        """The pruned model in its own class, with the weights of `model`.

        A copy whose state and sizes are cut, compared with the pruned graph in eval on two batch sizes and in
        training mode before it is given out. Hooks, modes, ties, parametrizations and `requires_grad` stay.

        Args:
            model: The dense model the plan was made for; it is not changed.
            example_inputs: What it runs on; None for inputs of the shapes the plan was made with.

        Raises:
            PlanError: The plan was made for another model, or the class cannot take these sizes: says what went
                wrong or how far off it is. `dp.remove` gives the same model as a graph, which always works.
        """
        return apply_plan(self, model, example_inputs)

    def to_json(self) -> dict[str, Any]:
        """JSON form, readable by `from_json`."""
        return {
            "format": FORMAT,
            "criterion": self.criterion,
            "scope": self.scope,
            "step": self.step,
            "inputs": self.inputs,
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "params_before": self.params_before,
            "params_after": self.params_after,
            "part": self.part,
            "dropped": list(self.dropped),
            "groups": [
                {"id": g.id, "size": g.size, "keep": list(g.keep), "members": [list(m) for m in g.members]}
                for g in self.groups
            ],
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote.

        Raises:
            PlanError: Not a plan, or of another format version.
        """
        try:
            if document["format"] not in (_WIDTHS_ONLY, FORMAT):
                raise PlanError(
                    f"the plan has format {document['format']}, this version reads {FORMAT}",
                    hint="compile the model again",
                )
            groups = tuple(GroupPlan(text(g, "id"), *kept_channels(g), members(g)) for g in document["groups"])
            texts([group.id for group in groups], "groups")
            costs = {k: number(document, k) for k in ("macs_before", "macs_after", "params_before", "params_after")}
            return Plan(
                groups,
                text(document, "criterion"),
                text(document, "scope"),
                number(document, "step", least=1),
                document["inputs"],
                part=text({"part": "", **document}, "part"),
                dropped=texts(document.get("dropped", []), "dropped"),
                **costs,
            )
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise PlanError(f"not a plan: {said}", hint="plan.json is damaged; compile again") from error


def make_plan(
    graph: Graph,
    keep: Mapping[str, NDArray[np.int64] | Sequence[int]],
    *,
    criterion: str = "given",
    scope: str = "given",
    step: int = 1,
) -> Plan:
    """A plan from kept channels, however they were chosen.

    Args:
        graph: Graph of the dense model, from `trace`.
        keep: Channels that stay by group id, [n] int64 from 0 to the group's size - 1; groups it does not name stay
            whole. Nothing by branch id, for a residual branch that goes; groups inside it then stay as they are.
        criterion: Name of how they were chosen, for the record.
        scope: Name of the scope they were chosen in, for the record.
        step: Number of channels that widths are multiples of, for the record.

    Raises:
        PlanError: No such group or channel, a group without any channel, or a tensor that would have none left.
    """
    dropped = graph.dropped(keep)
    inside = {group for branch in dropped for group in graph.branch(branch).groups}
    branches = {branch.id for branch in graph.branches}
    kept = {g: _channels(graph, g, channels) for g, channels in keep.items() if g not in branches}
    whole = {g.id: kept[g.id] if g.id in kept and g.id not in inside else np.arange(g.size) for g in graph.groups}
    for group_id, channels in graph.emptied(whole).items():
        raise PlanError(
            f"the plan leaves some tensor without any index: channel {min(channels)} of '{group_id}' has to stay",
            hint="keep it, or another channel that goes the same way through the model",
        )
    removed = graph.removed(whole | {branch: np.empty(0, np.int64) for branch in dropped})
    return Plan(
        groups=tuple(GroupPlan(g.id, g.size, tuple(whole[g.id].tolist()), members_of(g)) for g in graph.groups),
        criterion=criterion,
        scope=scope,
        step=step,
        inputs=to_json(graph.example_inputs, dynamic_batch=graph.dynamic_batch),
        macs_before=graph.costs.macs(),
        macs_after=graph.costs.macs(removed),
        params_before=graph.costs.params(),
        params_after=graph.costs.params(removed),
        part=graph.part,
        dropped=dropped,
    )


def _first_difference(planned: GroupPlan, found: tuple[tuple[str, int, int], ...]) -> str:
    """Which layer uses the channels in the plan but not in this model, the other way round, or in another order."""
    side = {0: "output", 1: "input"}
    told = f"the channels of '{planned.id}' are used by other layers than in the plan: "
    for mine, theirs, where in ((planned.members, found, "the plan"), (found, planned.members, "this model")):
        for name, axis, _ in (member for member in mine if member not in theirs):
            return told + f"the {side.get(axis, f'axis {axis}')} of '{name}' is one in {where} only"
    return told + "their order differs"


def members_of(group: Group) -> tuple[tuple[str, int, int], ...]:
    """(parameter, axis, positions per channel) of every member of a group."""
    return tuple((m.parameter, m.axis, m.index.shape[1]) for m in group.members)


def _channels(graph: Graph, group_id: str, channels: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
    """Kept channels of one group, ascending, if they are possible."""
    known = [g.id for g in graph.groups]
    if group_id not in known:
        close = get_close_matches(group_id, [*known, *(b.id for b in graph.branches)], n=1, cutoff=0.3)
        raise PlanError(
            f"this model has no group or branch '{group_id}'",
            hint=f"did you mean '{close[0]}'?" if close else "`deploypruner plan` lists them",
        )
    size, kept = graph.group(group_id).size, np.sort(np.asarray(channels, dtype=np.int64))
    if not len(kept):
        raise PlanError(
            f"the plan keeps none of the {size} channels of '{group_id}'", hint="every group keeps at least one"
        )
    if kept[0] < 0 or kept[-1] >= size or (np.diff(kept) == 0).any():
        raise PlanError(
            f"the plan does not keep {len(kept)} different channels of '{group_id}', which has 0 to {size - 1}",
            hint="name each channel that stays once",
        )
    return kept
