"""Which channels stay, in a form that can be saved, checked against a model and applied again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import PlanError
from deploypruner.graph import Graph
from deploypruner.records import TensorSpec

FORMAT = 1


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


@dataclass(frozen=True)
class Plan:
    """A pruning plan for one model.

    Args:
        groups: Every prunable group of the model.
        criterion: Registered name.
        scope: "uniform" or "global".
        step: Widths were rounded to multiples of this.
        inputs: Example inputs the model was traced with.
        macs_before: Predicted multiply-adds of one sample, dense.
        macs_after: The same after removal.
        params_before: Parameters of the inference graph, dense.
        params_after: The same after removal.
    """

    groups: tuple[GroupPlan, ...]
    criterion: str
    scope: str
    step: int
    inputs: tuple[TensorSpec, ...]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int

    @property
    def keep(self) -> Mapping[str, NDArray[np.int64]]:
        """Group id -> kept channels."""
        return {g.id: np.array(g.keep, dtype=np.int64) for g in self.groups}

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
            if members_of(graph, mine.id) != mine.members:
                raise PlanError(f"the channels of '{mine.id}' are used by other layers than in the plan", hint=hint)
        if len(theirs) != len(self.groups):
            extra = next(i for i in theirs if i not in {g.id for g in self.groups})
            raise PlanError(f"this model has a group '{extra}' that the plan does not know", hint=hint)

    def to_json(self) -> dict[str, Any]:
        """JSON form, readable by `from_json`."""
        return {
            "format": FORMAT,
            "criterion": self.criterion,
            "scope": self.scope,
            "step": self.step,
            "inputs": [{"name": t.name, "shape": list(t.shape), "dtype": t.dtype} for t in self.inputs],
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "params_before": self.params_before,
            "params_after": self.params_after,
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
            if document["format"] != FORMAT:
                raise PlanError(
                    f"the plan has format {document['format']}, this version reads {FORMAT}",
                    hint="compile the model again",
                )
            groups = tuple(
                GroupPlan(
                    g["id"],
                    int(g["size"]),
                    tuple(g["keep"]),
                    tuple((m[0], int(m[1]), int(m[2])) for m in g["members"]),
                )
                for g in document["groups"]
            )
            inputs = tuple(TensorSpec(t["name"], tuple(t["shape"]), t["dtype"]) for t in document["inputs"])
            numbers = {k: int(document[k]) for k in ("macs_before", "macs_after", "params_before", "params_after")}
            return Plan(groups, document["criterion"], document["scope"], int(document["step"]), inputs, **numbers)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise PlanError(
                f"not a plan: {type(error).__name__} at {error}", hint="plan.json is damaged; compile again"
            ) from error


def members_of(graph: Graph, group_id: str) -> tuple[tuple[str, int, int], ...]:
    """(parameter, axis, positions per channel) of every member of a group."""
    return tuple((m.parameter, m.axis, m.index.shape[1]) for m in graph.group(group_id).members)
