"""learn: which channels stay, found while the dense model is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from safetensors.torch import load_file, save_file

from deploypruner.criteria import Criterion
from deploypruner.errors import RecipeError
from deploypruner.folder import os_errors
from deploypruner.learn.learned import TransportGates, learned_regime
from deploypruner.learn.regime import ChannelRegime
from deploypruner.learn.run import Learned, learn
from deploypruner.learn.schedules import (
    Scores,
    Shrinking,
    can_score_while_training,
    toward_budget,
    toward_widths,
)
from deploypruner.prune.plan import Plan
from deploypruner.recipe import LearnRecipe
from deploypruner.recipe.budget import Budget
from deploypruner.records import ACCURACY
from deploypruner.registries import schedules
from deploypruner.search.found import SearchResult
from deploypruner.stages import Build, Stage, stage_file
from deploypruner.stages.allocate import plan_in_macs
from deploypruner.stages.evaluate import classes_of, validation
from deploypruner.stages.gradual import Toward, arrived, toward_time
from deploypruner.stages.score import make_criterion

_CHECKPOINT = stage_file("learning.safetensors")
_WEIGHTS, _FACTS = stage_file("learned.safetensors"), stage_file("learn.json")
_FOUND = stage_file("learned_search.json")


class Learn(Stage):
    """Train the dense model with gates on its channels until the plan's widths are left; nothing for one-shot."""

    name: ClassVar[str] = "learn"
    saves: ClassVar[tuple[str, ...]] = ("plan.json", _WEIGHTS, _FACTS, _FOUND)

    def run(self, build: Build) -> Build:
        """Give the plan with the channels that training chose, and the trained weights; save both."""
        criterion = make_criterion(build.criterion, build.recipe.prune.parameters)
        schedule = schedule_name(build.recipe.learn, criterion)
        facts: dict[str, Any] = {"schedule": schedule}
        if schedule != "one-shot" and _cuts(build.planned):
            build, learned, found = _learn(build, criterion, schedule)
            facts |= found
            with build.folder.writing(_WEIGHTS) as path:
                save_file({name: tensor.contiguous().clone() for name, tensor in learned.weights.items()}, path)
            build = replace(build, learned=learned.weights)
        build.folder.write_json("plan.json", build.planned.to_json())
        build.folder.write_json(_FACTS, facts)
        build.folder.write_json(_FOUND, None if build.found is None else build.found.to_json())
        return replace(build, facts={**build.facts, **facts})

    def restore(self, build: Build) -> Build:
        """Read plan and weights of an earlier run."""
        plan = Plan.from_json(build.folder.read_json("plan.json"))
        plan.check(build.traced)
        facts = build.folder.read_json(_FACTS)
        learned = load_file(build.folder.path(_WEIGHTS)) if "learn_epochs" in facts else {}
        found = build.folder.read_json(_FOUND)
        return replace(
            build,
            plan=plan,
            found=None if found is None else SearchResult.from_json(found),
            learned=learned,
            facts={**build.facts, **facts},
        )

    def document(self, build: Build) -> str | None:
        """What training did, and how sure it was; None for one-shot."""
        facts, plan = build.facts, build.planned
        if "learn_epochs" not in facts:
            schedule = str(facts["schedule"])
            return None if schedule == "one-shot" else f"{schedule}: every channel stays, nothing to learn"
        text = (
            f"{facts['schedule']}, {facts['learn_epochs']} epoch{'' if facts['learn_epochs'] == 1 else 's'}: "
            f"{plan.macs_after / plan.macs_before:.3f} of the MACs, {facts['undecided']:.1%} of the masks undecided"
        )
        if build.found is not None and build.found.measured_ms is not None and facts["schedule"] == "iterative":
            text += f", {build.found.measured_ms:.3g} ms"
        return text + (f", accuracy {facts['accuracy_learned']:.2f} %" if "accuracy_learned" in facts else "")


def schedule_name(recipe: LearnRecipe, criterion: Criterion) -> str:
    """Resolve "auto", and refuse what does not go together.

    Raises:
        RecipeError: No such schedule, or one that makes no sense with this criterion.
    """
    named, learned = type(criterion).__name__.lower(), criterion.learned
    if recipe.schedule == "auto":
        return "learned" if learned else "one-shot"
    schedules.check(recipe.schedule, to="channels")
    if learned and recipe.schedule != "learned":
        raise RecipeError(
            f"criterion '{named}' trains its masks and has a schedule of its own, not '{recipe.schedule}'",
            hint="leave out --schedule, or use --criterion magnitude or taylor",
        )
    if recipe.schedule == "learned" and not learned:
        raise RecipeError(
            f"criterion '{named}' has no masks that could be learned", hint="use --criterion pdp or dtp"
        )
    if recipe.schedule != "one-shot" and not can_score_while_training(criterion):
        raise RecipeError(
            f"criterion '{named}' needs more than the gradients of a training step, which is all that schedule "
            f"'{recipe.schedule}' has",
            hint="use --schedule one-shot, or a criterion such as taylor or magnitude",
        )
    return recipe.schedule


def check_learning(recipe: LearnRecipe, criterion: Criterion, *, has_data: bool) -> None:
    """Check before any work that a schedule which trains has something to train on.

    Raises:
        RecipeError: See `schedule_name`; or there is no data, or no epoch.
    """
    schedule, named = schedule_name(recipe, criterion), type(criterion).__name__.lower()
    if schedule == "one-shot":
        return
    what = f"criterion '{named}'" if schedule == "learned" else f"schedule '{schedule}'"
    if not has_data:
        raise RecipeError(
            f"{what} chooses channels while training and needs data",
            hint="pass --data DIR (labels are not required), or use --criterion magnitude with --schedule one-shot",
        )
    if not recipe.epochs:
        raise RecipeError(f"{what} chooses channels while training, and --learn-epochs is 0", hint="3 is a start")


def _cuts(plan: Plan) -> bool:
    """Is there anything that a schedule may choose in place of the plan? Branches are the plan's."""
    return any(len(g.keep) < g.size for g in plan.groups)


def _learn(build: Build, criterion: Criterion, schedule: str) -> tuple[Build, Learned, dict[str, Any]]:
    """Train; the build then has the plan that training ended in, and how that keeps a budget of time."""
    data, recipe = build.data, build.recipe.learn
    assert data is not None, "check_learning asks for data"
    toward = toward_time(build) if schedule == "iterative" else None
    regime = _regime(build, criterion, schedule, toward)
    found = validation(build)
    checkpoint = build.folder.claim(_CHECKPOINT)
    with os_errors(checkpoint):
        learned = learn(
            build.traced,
            data.train,
            regime,
            replace(recipe.settings, epochs=recipe.epochs, seed=build.recipe.seed),
            checkpoint=checkpoint,
            progress=build.progress,
            validate=None if found is None else found.score,
            classes=classes_of(build),
        )
    build = replace(build, plan=learned.plan)
    if toward is not None and isinstance(regime, Shrinking):
        build, plan, met = arrived(build, toward, learned.plan.keep, regime.scores)
        build = replace(build, plan=plan, found=met)
    checkpoint.unlink(missing_ok=True)
    facts: dict[str, Any] = {"learn_epochs": recipe.epochs, "undecided": learned.undecided}
    if learned.history.score is not None and found is not None and found.metric == ACCURACY:
        facts["accuracy_learned"] = learned.history.score
    if isinstance(regime, TransportGates):
        facts["beta_halvings"] = regime.halvings
    return build, learned, facts


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
