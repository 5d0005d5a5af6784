"""How the plan was chosen under a budget of time: in a sentence, and as a table of the plans that were judged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deploypruner.report import units
from deploypruner.report.document import Report
from deploypruner.report.ranges import collapse

_PERTURBED, _REFINED = "perturbed ", "refined "


@dataclass(frozen=True)
class PlanLine:
    """One judged plan as text: what chose it, its numbers, and what it leaves out.

    Args:
        objective: What it was chosen by.
        predicted: Milliseconds.
        loss: Before training, in the unit that `judged_by` says.
        top1: Percent.
        trained: Loss after a brief training, "" where it had none.
        gone: Residual branches, "" where all stay.
        full: Judged on all images?
        taken: Is it the plan of the build?
    """

    objective: str
    predicted: str
    loss: str
    top1: str
    trained: str
    gone: str
    full: bool
    taken: bool


def chosen_sentence(report: Report) -> str:
    """What decided about the plan, and what is gone; "" where nothing was chosen by time, or nobody noted it.

    "by measured worth, the best of 16 plans judged by loss before training; 2 residual branches gone: layer1.0-1".
    """
    budget = report.budget
    if not budget.get("objective"):
        return ""
    name, pool = objective_name(str(budget["objective"])), budget.get("pool") or []
    if len(pool) > 1:
        trained = sum(entry.get("trained") is not None for entry in pool)
        how = f"by {name}, the best of {len(pool)} plans judged by {budget['judged_by']} before training"
        how += f", {trained} of them after a brief training too" if trained else ""
    elif pool:
        how = f"by {name}, the only plan there was to judge"
    elif report.settings.get("data") is None:
        how = f"by {name} alone: without data no plan can be judged, so nothing is known about accuracy"
    else:
        how = f"by {name} alone: no plan was judged before training"
    parts = [how, branches_gone(budget.get("dropped") or []), _judged(budget.get("judged")), budget.get("cut") or ""]
    return "; ".join(filter(None, parts))


def _judged(judged: dict[str, Any] | None) -> str:
    """ "it has loss 0.31 and 88.2 % top-1 before training, the dense model 0.24 and 90.1 %"; "" where it was not."""
    if not judged:
        return ""
    found, dense = judged["verdict"], judged["dense"]
    text = f"it has {found['kind']} {_numbers(found)} before training, the dense model {_numbers(dense)}"
    if judged["accepted"]:
        return text
    return f"{text}: more than the {judged['allowed']:g} points that may be lost without training"


def _numbers(verdict: dict[str, Any]) -> str:
    loss = "that is not finite" if verdict["loss"] is None else units.significant(verdict["loss"])
    gap = verdict.get("gap")
    if verdict["top1"] is None and gap is not None:
        value = (
            "not a number" if gap["found"] is None else f"{units.significant(gap['found'])} {gap['unit']}".rstrip()
        )
        return f"{loss} and {gap['kind']} {value}"
    return loss if verdict["top1"] is None else f"{loss} and {units.percent(verdict['top1'])} % top-1"


def branches_gone(ids: Iterable[str]) -> str:
    """ "3 residual branches gone: layer1.0-1, layer2.2"; "" for none."""
    names = list(ids)
    if not names:
        return ""
    return f"{len(names)} residual branch{'' if len(names) == 1 else 'es'} gone: {', '.join(collapse(names))}"


def objective_name(name: str) -> str:
    """An objective of the search as a part of a sentence, which has commas of its own."""
    if name.startswith(_PERTURBED):
        return f"worths changed at random (no. {name.removeprefix(_PERTURBED)})"
    if name.startswith(_REFINED):
        changes, _, base = name.removeprefix(_REFINED).partition(" of ")
        return f"{objective_name(base)}, improved in {len(changes.split('+'))} steps".replace(" 1 steps", " one step")
    return name.replace(", ", " with ")


def pool_lines(budget: dict[str, Any]) -> list[PlanLine]:
    """The judged plans, the best first.

    Args:
        budget: The report's.
    """
    pool = budget.get("pool") or []
    taken = next((n for n, entry in enumerate(pool) if entry["objective"] == budget.get("objective")), None)
    return [
        PlanLine(
            objective=objective_name(str(entry["objective"])),
            predicted=units.significant(entry["predicted_ms"]),
            loss="not finite" if entry["loss"] is None else units.significant(entry["loss"]),
            top1=units.percent(entry["top1"]),
            trained="" if entry.get("trained") is None else units.significant(entry["trained"]),
            gone=", ".join(collapse(entry["dropped"])),
            full=bool(entry["full"]),
            taken=number == taken,
        )
        for number, entry in enumerate(pool)
    ]
