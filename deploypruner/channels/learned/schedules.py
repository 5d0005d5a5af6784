"""Channels go little by little while the network trains, ranked anew each time by any criterion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from deploypruner.channels.criteria import Criterion
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.learned.gathering import AVAILABLE, Gathering
from deploypruner.channels.learned.regime import ChannelRegime, closed, nothing_of, settled
from deploypruner.channels.plan import Plan
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.recipe.learn import LearnSettings
from deploypruner.registries import schedules
from deploypruner.sparsity.masks import ramped_keep
from deploypruner.train.regime import under

_RANKINGS = 30

Scores = dict[str, Tensor]
# Share of the removal in (0, 1], scores, what is left so far -> group id -> what stays.
Narrow = Callable[[float, Scores, Mapping[str, IntArray]], Mapping[str, IntArray]]


def can_score_while_training(criterion: Criterion) -> bool:
    """Do the gradients of training say all that this criterion asks for?"""
    return not criterion.needs & ~AVAILABLE


def rankings(schedule: str, settings: LearnSettings, steps: int, going: int) -> dict[int, float]:
    """Step -> share of the removal that is in force after it.

    Args:
        schedule: Name of one that ranks channels anew while training: "iterative", "gradual".
        settings: Pace.
        steps: Of the training.
        going: Channels that go in all.

    Raises:
        RecipeError: The training has too few steps.
    """
    chosen = schedules.get(schedule)
    assert chosen.last_ranking is not None, f"schedule '{schedule}' ranks no channels while training"
    last = max(1, int(chosen.last_ranking * steps))
    by_count = chosen.by_count and settings.channels
    if by_count:
        count = max(1, ceil(going / settings.channels))
    else:
        count = max(1, last // settings.every) if settings.every else min(_RANKINGS, last)
    every = settings.every or max(1, last // count)
    if count * every > steps:
        raise RecipeError(
            f"{count} rankings, one every {every} minibatches, take {count * every} training steps, and there are "
            f"{steps}",
            hint="raise --learn-epochs, or remove more channels at a time (learn.pace.channels)",
        )
    found = {}
    for number in range(1, count + 1):
        share = min(1.0, number * settings.channels / max(going, 1)) if by_count else chosen.ramp(number / count)
        found[number * every - 1] = share
    return found


class Shrinking(ChannelRegime):
    """What is closed stays closed: channels are zero in all that writes or reads them.

    Args:
        graph: The traced dense model.
        plan: From the dense model; says how many channels go.
        criterion: Scores channels; see `can_score_while_training`.
        schedule: Name of one that ranks channels anew while training: "iterative", "gradual".
        settings: Pace.
        narrow: Which channels stay at a share of the removal.
        before: Scores of the dense model, for a ranking at which the training's loss has no gradient at all.

    Attributes:
        rankings: Step -> share of the removal, once training begins.
        scores: Of the last ranking; what was gone then has the lowest.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        criterion: Criterion,
        *,
        schedule: str,
        settings: LearnSettings,
        narrow: Narrow,
        before: Scores,
    ) -> None:
        super().__init__(graph, plan)
        self._criterion, self._schedule, self._settings = criterion, schedule, settings
        self._narrow, self._before = narrow, before
        self._alive = {g.id: np.ones(g.size, bool) for g in graph.groups}
        self._average: Scores = {}
        self.scores: Scores = dict(before)
        self._done = 0.0
        self.rankings: dict[int, float] = {}

    def begin(self, student: nn.Module, steps: int) -> None:
        """Fix the steps at which channels go."""
        super().begin(student, steps)
        going = sum(g.size - len(g.keep) for g in self.plan.groups)
        self.rankings = rankings(self._schedule, self._settings, steps, going)
        self._gathering = Gathering(self.graph, self._criterion, self.parameters)

    def weights(self, step: int) -> dict[str, Tensor]:
        """Zeros for everything that is gone."""
        return closed(self.graph, self.parameters, self.keep()) | self.shut()

    def after_backward(self, step: int) -> None:
        """Gather evidence, and take channels away where it is time."""
        if self._done == 1:
            return
        self._gathering.add()
        # A step that overflowed fp16 calls nobody: what was due then is due now.
        due = max((share for at, share in self.rankings.items() if at <= step), default=0.0)
        if due > self._done:
            self._shrink(due)

    def finish(self, student: nn.Module) -> None:
        """Everything that had to go is gone, also where the last step of all overflowed."""
        if self._done < 1:
            self._shrink(1.0)
        super().finish(student)

    def soft(self) -> dict[str, Tensor]:
        """1 for what is there, 0 for what is gone."""
        return {g: torch.as_tensor(alive).float() for g, alive in self._alive.items()}

    def values(self) -> dict[str, Tensor]:
        """The same."""
        return self.soft()

    def keep(self) -> dict[str, IntArray]:
        """Channels that are still there, and nothing of every branch that is gone."""
        return {g: np.flatnonzero(alive) for g, alive in self._alive.items()} | nothing_of(self.gone())

    def soft_weights(self) -> dict[str, Tensor]:
        """The network that is trained, which is hard at all times."""
        return self.hard_weights()

    def hard_weights(self) -> dict[str, Tensor]:
        """Zeros for everything that is gone."""
        held = {name: parameter.detach() for name, parameter in self.parameters.items()}
        return closed(self.graph, held, self.keep()) | self.shut()

    def state(self) -> dict[str, Tensor]:
        """What is gone, scores and their running averages, and evidence since the last ranking."""
        state = super().state() | {"done": torch.tensor(self._done, dtype=torch.float64)}
        state |= {f"scores.{g}": score for g, score in self.scores.items()}
        state |= {f"alive.{g}": torch.as_tensor(alive) for g, alive in self._alive.items()}
        state |= {f"average.{g}": average for g, average in self._average.items()}
        return state | {f"gathered.{name}": tensor for name, tensor in self._gathering.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        super().load_state(state)
        self._done = float(state["done"])
        self._alive = {g: alive.bool().cpu().numpy() for g, alive in under(state, "alive.").items()}
        self.scores = under(state, "scores.")
        self._average = under(state, "average.")
        self._gathering.load_state(under(state, "gathered."))

    def describe(self) -> str:
        """Criterion, schedule and pace too."""
        return f"{super().describe()} {self._criterion} {self._schedule} {self._settings}"

    def _shrink(self, share: float) -> None:
        """Rank anew, and close what goes at this share of the removal."""
        self.scores = self._ranked(self._gathering.scores() if self._gathering.ready else self._before)
        for name, kept in self._narrow(share, self.scores, self.keep()).items():
            if name in self._alive:  # branches are the plan's
                self._alive[name] &= np.isin(np.arange(len(self._alive[name])), kept)
        self._done = share

    def _ranked(self, new: Scores) -> Scores:
        """Scores averaged over rankings; what is gone is worth nothing."""
        if not any(bool(score.any()) for score in new.values()):
            new = self._before
        momentum = self._settings.momentum
        if momentum and self._average:
            new = {g: momentum * self._average[g] + (1 - momentum) * score for g, score in new.items()}
        self._average = new if momentum else {}
        gone = {g: torch.as_tensor(~alive, device=new[g].device) for g, alive in self._alive.items()}
        # Hardly below 0 and below everything that is left, so that it goes first.
        return {g: torch.where(gone[g], _below(score), score) for g, score in new.items()}


def _below(score: Tensor) -> Tensor:
    least = score.min().clamp_max(0)
    return torch.nextafter(least, torch.full_like(least, -torch.inf))


def toward_widths(graph: Graph, plan: Plan) -> Narrow:
    """Every group goes straight to its width in the plan; the scores decide which of its channels stay."""

    def narrow(share: float, scores: Scores, left: Mapping[str, IntArray]) -> Mapping[str, IntArray]:
        widths = {g.id: int(ramped_keep(g.size, len(g.keep), share)) for g in plan.groups}
        return settled(graph, by_importance(scores), widths)

    return narrow


def toward_budget(macs: float, allocated: Callable[[Scores, float], Plan]) -> Narrow:
    """All groups are ranked against each other at a budget that falls to `macs`, so widths change with the scores.

    Args:
        macs: Fraction of the multiply-adds that remains in the end.
        allocated: Scores and a fraction -> plan.
    """

    def narrow(share: float, scores: Scores, left: Mapping[str, IntArray]) -> Mapping[str, IntArray]:
        return allocated(scores, 1 - share * (1 - macs) if share < 1 else macs).keep

    return narrow
