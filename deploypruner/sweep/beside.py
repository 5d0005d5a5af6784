"""Sweeps of the same model at other costs, for what several of them say together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploypruner.build.state import Build
from deploypruner.errors import InputError
from deploypruner.sweep.conjectures import CostRegime
from deploypruner.sweep.records import DenseModel, Sample
from deploypruner.sweep.store import StoredTrial


def regimes_of(others: Sequence[tuple[dict[str, Any], list[StoredTrial]]], build: Build) -> list[CostRegime]:
    """Populations of other sweeps.

    Raises:
        InputError: One is of another model.
    """
    found = []
    for about, trials in others:
        if about.get("model") != build.sha256:
            raise InputError(
                f"the sweep of {about.get('budget')} named by --beside is of another model, or of other weights",
                hint="name sweeps of this model alone",
            )
        dense = DenseModel(**about["dense"])
        samples = tuple(
            Sample(one.id, one.kept.drop, one.kept.macs, one.kept.params, one.trial.std, one.predicted_ms)
            for one in trials
            if one.kept and one.trial.phase == "space"
        )
        found.append(CostRegime(str(about["budget"]), samples, dense))
    return found
