"""DeployPruner: from a trained PyTorch model to the fastest artifact that keeps its accuracy.

    import deploypruner as dp
    graph = dp.trace(model, example_inputs)
    plan = dp.plan(graph, criterion="taylor", budget=dp.Budget(macs=0.5), data=loader)
    small = dp.remove(graph, plan)
    build = dp.compile(model, example_inputs, data=loader, macs=0.5, out="build/")

Names are imported on first use, so that `deploypruner --help` and timing workers need no torch.
`dp.measure` and `dp.prune` are functions; the packages of the same name are reached by `from deploypruner.measure
import ...`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploypruner.api import Pruned, compile, export_point, plan, prune
    from deploypruner.build.restore import restore
    from deploypruner.channels.plan import Plan, make_plan
    from deploypruner.channels.remove import remove
    from deploypruner.compiled import CompiledBuild
    from deploypruner.errors import DeployPrunerError
    from deploypruner.frontier.call import FrontierResult, frontier
    from deploypruner.graph import Graph, trace
    from deploypruner.measure import measure
    from deploypruner.recipe.budget import Budget
    from deploypruner.recipe.constraints import Constraints, LayerConstraint
    from deploypruner.records import Frozen, Group, Row
    from deploypruner.sweep.call import SweepResult, sweep

    __version__: str

_HOMES = {
    "deploypruner.api": ("Pruned", "compile", "export_point", "plan", "prune"),
    "deploypruner.compiled": ("CompiledBuild",),
    "deploypruner.errors": ("DeployPrunerError",),
    "deploypruner.frontier.call": ("FrontierResult", "frontier"),
    "deploypruner.graph": ("Graph", "trace"),
    "deploypruner.measure": ("measure",),
    "deploypruner.recipe.constraints": ("Constraints", "LayerConstraint"),
    "deploypruner.channels.plan": ("Plan", "make_plan"),
    "deploypruner.channels.remove": ("remove",),
    "deploypruner.build.restore": ("restore",),
    "deploypruner.recipe.budget": ("Budget",),
    "deploypruner.records": ("Frozen", "Group", "Row"),
    "deploypruner.sweep.call": ("SweepResult", "sweep"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
# Those that load neither torch nor the runtimes.
_QUICK = (
    *("deploypruner.errors", "deploypruner.records"),
    *("deploypruner.recipe.budget", "deploypruner.recipe.constraints"),
)

__all__ = [
    "Budget",
    "CompiledBuild",
    "Constraints",
    "DeployPrunerError",
    "FrontierResult",
    "Frozen",
    "Graph",
    "Group",
    "LayerConstraint",
    "Plan",
    "Pruned",
    "Row",
    "SweepResult",
    "compile",
    "export_point",
    "frontier",
    "make_plan",
    "measure",
    "plan",
    "prune",
    "remove",
    "restore",
    "sweep",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _version()
    elif name in _HOME_OF:
        value = getattr(_loaded(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'deploypruner' has no attribute '{name}'")
    globals()[name] = value
    return value


def _loaded(home: str) -> ModuleType:
    """The module; on a terminal a live line says so while the runtimes are loaded with it, which takes seconds."""
    if home in sys.modules or home in _QUICK:
        return importlib.import_module(home)
    with importlib.import_module("deploypruner.progress").progress_for() as shown:
        shown.doing("loading deploypruner")
        return importlib.import_module(home)


def _version() -> str:
    """That of the git tag the package was built from, as its metadata have it; the sources alone do not know it."""
    metadata = importlib.import_module("importlib.metadata")  # 20 ms that most commands do without
    try:
        return str(metadata.version(__name__))
    except metadata.PackageNotFoundError:
        return "0+not.installed"


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Importing a sub-package stores it on its parent, where it would hide the function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
