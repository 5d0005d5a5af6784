"""learn: which channels stay, found while the dense model is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from safetensors.torch import load_file, save_file

from deploypruner.build.allocation import plan_in_macs
from deploypruner.build.criterion import make_criterion
from deploypruner.build.evaluate import validation
from deploypruner.build.gradual import Toward, arrived, toward_time
from deploypruner.build.learning import schedule_name
from deploypruner.build.register import stages
from deploypruner.build.results import Learning
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.channels.criteria import Criterion
from deploypruner.channels.learned.learned import TransportGates, learned_regime
from deploypruner.channels.learned.regime import ChannelRegime
from deploypruner.channels.learned.run import Learned, learn
from deploypruner.channels.learned.schedules import (
    Scores,
    Shrinking,
    toward_budget,
    toward_widths,
)
from deploypruner.channels.plan import Plan
from deploypruner.recipe.budget import Budget
from deploypruner.records import ACCURACY
from deploypruner.search.found import SearchResult

_CHECKPOINT = stage_file("learning.safetensors")
_WEIGHTS, _LEARNING = stage_file("learned.safetensors"), stage_file("learn.json")
_FOUND = stage_file("learned_search.json")


@stages.register("learn")
class Learn(Stage):
    """Train the dense model with gates on its channels until the plan's widths are left; nothing for one-shot."""

    name: ClassVar[str] = "learn"
    needs: ClassVar[tuple[str, ...]] = ("allocate",)
    reads: ClassVar[tuple[str, ...]] = ("prune", "learn", "search", "measure", "quantize", "target", "seed")
    outlives: ClassVar[tuple[str, ...]] = ("measure.seconds",)
    saves: ClassVar[tuple[str, ...]] = ("plan.json", _WEIGHTS, _LEARNING, _FOUND)

    def run(self, build: Build) -> Build:
        """Give the plan with the channels that training chose, and the trained weights; save both."""
        criterion = make_criterion(build.criterion, build.recipe.prune.parameters)
        schedule = schedule_name(build.recipe.learn, criterion)
        learning = Learning(schedule)
        if schedule != "one-shot" and _cuts(build.planned):
            build, learned, learning = _learn(build, criterion, schedule)
            with build.folder.writing(_WEIGHTS) as path:
                save_file({name: tensor.contiguous().clone() for name, tensor in learned.weights.items()}, path)
            build = replace(build, learned=learned.weights)
        build.folder.write_json("plan.json", build.planned.to_json())
        build.folder.write_json(_LEARNING, learning.to_json())
        build.folder.write_json(_FOUND, None if build.found is None else build.found.to_json())
        return replace(build, learning=learning)

    def restore(self, build: Build) -> Build:
        """Read plan and weights of an earlier run."""
        plan = Plan.from_json(build.folder.read_json("plan.json"))
        plan.check(build.traced)
        learning = Learning(**build.folder.read_json(_LEARNING))
        learned = load_file(build.folder.path(_WEIGHTS)) if learning.learn_epochs is not None else {}
        found = build.folder.read_json(_FOUND)
        return replace(
            build,
            plan=plan,
            found=None if found is None else SearchResult.from_json(found),
            learned=learned,
            learning=learning,
        )

    def document(self, build: Build) -> str | None:
        """What training did, and how sure it was; None for one-shot."""
        found, plan = build.learning, build.planned
        schedule, epochs = found.schedule, found.learn_epochs
        if epochs is None:
            return None if schedule == "one-shot" else f"{schedule}: every channel stays, nothing to learn"
        assert found.undecided is not None, "what was learnt has masks"
        text = (
            f"{schedule}, {epochs} epoch{'' if epochs == 1 else 's'}: "
            f"{plan.macs_after / plan.macs_before:.3f} of the MACs, "
            f"{100 * found.undecided:.1f} % of the masks undecided"
        )
        if build.found is not None and build.found.measured_ms is not None and schedule == "iterative":
            text += f", {build.found.measured_ms:.3g} ms"
        return text + ("" if found.accuracy_learned is None else f", accuracy {found.accuracy_learned:.2f} %")


def _cuts(plan: Plan) -> bool:
    """Is there anything that a schedule may choose in place of the plan? Branches are the plan's."""
    return any(len(g.keep) < g.size for g in plan.groups)


def _learn(build: Build, criterion: Criterion, schedule: str) -> tuple[Build, Learned, Learning]:
    """Train; the build then has the plan that training ended in, and how that keeps a budget of time."""
    data, recipe = build.data, build.recipe.learn
    assert data is not None, "check_learning asks for data"
    toward = toward_time(build) if schedule == "iterative" else None
    regime = _regime(build, criterion, schedule, toward)
    found = validation(build)
    checkpoint = build.folder.claim(_CHECKPOINT)
    learned = learn(
        build.traced,
        data.train,
        regime,
        replace(recipe.settings, epochs=recipe.epochs, seed=build.recipe.seed),
        checkpoint=checkpoint,
        progress=build.progress,
        validate=None if found is None else found.score,
        loss=build.loss,
    )
    build = replace(build, plan=learned.plan)
    if toward is not None and isinstance(regime, Shrinking):
        build, plan, met = arrived(build, toward, learned.plan.keep, regime.scores)
        build = replace(build, plan=plan, found=met)
    checkpoint.unlink(missing_ok=True)
    plain = found is not None and found.metric == ACCURACY and found.all_outputs is None
    learning = Learning(
        schedule,
        learn_epochs=recipe.epochs,
        undecided=learned.undecided,
        accuracy_learned=learned.history.score if plain else None,
        beta_halvings=regime.halvings if isinstance(regime, TransportGates) else None,
    )
    return build, learned, learning


def _regime(build: Build, criterion: Criterion, schedule: str, toward: Toward | None) -> ChannelRegime:
    graph, plan, budget = build.traced, build.planned, build.recipe.prune.budget
    if schedule == "learned":
        return learned_regime(graph, plan, criterion)
    assert build.scores is not None, "stage 'score' has not run"

    def allocated(scores: Scores, macs: float) -> Plan:
        return plan_in_macs(build, scores, Budget(macs=macs))

    narrow = toward_widths(graph, plan)
    if toward is not None:
        narrow = toward.gradual.narrow
    elif schedule == "iterative" and budget.macs is not None:
        narrow = toward_budget(budget.macs, allocated)
    return Shrinking(
        graph,
        plan,
        criterion,
        schedule=schedule,
        settings=build.recipe.learn.pace,
        narrow=narrow,
        before=build.scores,
    )
