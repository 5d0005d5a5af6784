"""The registries: every kind of thing that a user chooses by name, where its implementations are, and nothing heavy.

A new implementation is one file in the package named here; `deploypruner list KIND` shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploypruner.registry import Family, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploypruner.channels.criteria import Criterion
    from deploypruner.channels.normalize import Normalization
    from deploypruner.channels.scope import Scope
    from deploypruner.device.transports import Transport
    from deploypruner.export import Exporter
    from deploypruner.runtime import Runtime
    from deploypruner.schedules import Schedule
    from deploypruner.sparsity.patterns import Pattern
    from deploypruner.target import Target
    from deploypruner.tasks import Task

# Names of patterns that are no masks: channels are removed, and "auto" chooses among patterns.
CHANNEL = "channel"
AUTO = "auto"
# What each layer may follow under "auto": all that the kernels run in place of dense weights.
CANDIDATES = ("1x4", "2x4", "4x4", "nm64", "unstructured")

criteria: Registry[type[Criterion]] = Registry("criterion", "criteria", "deploypruner.channels.criteria")
exporters: Registry[type[Exporter]] = Registry("exporter", "exporters", "deploypruner.export")
normalizers: Registry[Normalization] = Registry("normalizer", "normalizers", "deploypruner.channels.normalize")
patterns: Registry[type[Pattern]] = Registry(
    "pattern",
    "patterns",
    "deploypruner.sparsity.patterns",
    special={
        CHANNEL: "Whole channels, physically removed: the model stays dense and smaller.",
        AUTO: f"For each layer the best of dense, {', '.join(CANDIDATES)} and how many zeros, by predicted time.",
    },
    family=Family("N:M", r"(\d+):(\d+)", "2:4"),
)
runtimes: Registry[type[Runtime]] = Registry("runtime", "runtimes", "deploypruner.runtime")
schedules: Registry[type[Schedule]] = Registry("schedule", "schedules", "deploypruner.schedules")
scopes: Registry[Scope] = Registry("scope", "scopes", "deploypruner.channels.scope")
targets: Registry[Callable[[], Target]] = Registry("target", "targets", "deploypruner.target")
transports: Registry[Callable[..., Transport]] = Registry("transport", "transports", "deploypruner.device.transports")
tasks: Registry[type[Task]] = Registry("task", "tasks", "deploypruner.tasks")

_ALL = (criteria, exporters, normalizers, patterns, runtimes, schedules, scopes, targets, tasks, transports)
REGISTRIES: dict[str, Registry[Any]] = {registry.plural: registry for registry in _ALL}
