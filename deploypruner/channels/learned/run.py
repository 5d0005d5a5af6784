"""Train the dense model under a regime, and hand over what stays and the weights it stays with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from deploypruner.channels.learned.regime import ChannelRegime
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.graph import Graph
from deploypruner.graph.execute.branch_gates import with_branch_gates
from deploypruner.losses import ModelLoss
from deploypruner.progress import Progress
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import TrainingBatches
from deploypruner.train.finetune import FinetuneHistory, finetune


@dataclass(frozen=True)
class Learned:
    """What training chose.

    Args:
        plan: Which channels stay.
        weights: Parameter or buffer name -> tensor of the dense shape, zero where a channel goes; for
            `graph.execute.parameter_override` around the removal.
        undecided: Share of the channels whose mask was still between 0.05 and 0.95 at the end.
        history: Of the training.
    """

    plan: Plan
    weights: dict[str, Tensor]
    undecided: float
    history: FinetuneHistory


def learn(
    graph: Graph,
    batches: TrainingBatches,
    regime: ChannelRegime,
    settings: FinetuneSettings,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    loss: ModelLoss | None = None,
) -> Learned:
    """Train a copy of the dense model with gates on its channels; the dense model itself is the teacher.

    Args:
        graph: The traced model; it is not changed.
        batches: Training data.
        regime: Gates and how they close.
        settings: Of the training.
        checkpoint: File written after every epoch.
        progress: Told about every step and epoch.
        validate: Called after each epoch with the weights that training would end in.
        loss: Of every output, see `finetune`.

    Raises:
        RecipeError: The schedule does not fit into the training.
        InputError: A batch gives a loss that is not finite, or nothing can be trained.
    """
    student = with_branch_gates(graph, regime.branches)
    history = finetune(
        student,
        graph.module,
        batches,
        settings,
        checkpoint=checkpoint,
        progress=progress,
        label="learn",
        validate=validate,
        regime=regime,
        loss=loss,
    )
    result, planned = regime.result, regime.plan
    assert result is not None, "a training that ended has a result"
    chosen = make_plan(graph, result.keep, criterion=planned.criterion, scope=planned.scope, step=planned.step)
    dense, state = graph.module.state_dict(), student.state_dict()
    weights = {name: tensor.detach() for name, tensor in state.items() if name in dense}  # the rest is gates
    return Learned(chosen, weights, result.undecided, history)
