"""Which stages there are: each file of `build.stages` registers one, under its `name`."""

from __future__ import annotations

from typing import Any

from deploypruner.registry import Registry

stages: Registry[Any] = Registry("stage", "stages", "deploypruner.build.stages")


def stage_files() -> frozenset[str]:
    """Top-level names of every file and folder that a stage says it writes."""
    found = (stages.get(name) for name in stages)
    return frozenset(name.split("/")[0] for stage in found for name in (*stage.saves, *stage.writes))
