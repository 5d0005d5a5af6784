"""Which channels of a given width stay: those of the highest scores, or those that the layers behind miss most."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deploypruner.build.feeds import evaluated_at_once, training_batches
from deploypruner.build.sparsity import brought_zeros
from deploypruner.build.state import Build
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.errors import RecipeError
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.train.readers import order_by_readers
from deploypruner.train.reconstruct import can_reconstruct

_BATCH = 64


def choosing_scores(build: Build) -> dict[str, Tensor]:
    """Scores with the criterion's values and the order in which channels are to stay.

    So that widths follow from the criterion and the measured worth whatever orders the channels.

    Raises:
        RecipeError: The layers behind are asked for without data, or of a model that cannot be reconstructed.
    """
    assert build.scores is not None, "stage 'score' has not run"
    if not chosen_by_readers(build):
        return build.scores
    batch = evaluated_at_once(build, _BATCH)
    count = -(-build.recipe.recover.reconstruct_samples // batch)
    batches = training_batches(build, batch_size=batch, count=count)
    order = order_by_readers(build.traced, by_importance(build.scores), batches)
    return {name: reordered(score, order[name]) for name, score in build.scores.items()}


def chosen_by_readers(build: Build) -> bool:
    """Do the layers behind a group decide which of its channels stay?

    Where nobody said: if the layers will be solved anew, if the criterion was not named, and if no training chooses.
    """
    asked, recover = build.recipe.prune.channels, build.recipe.recover
    possible = build.data is not None and can_reconstruct(build.traced)
    if asked == "readers" and not possible:
        raise RecipeError(
            "--channels readers solves layers on data, in models that torch.export traces",
            hint="pass --data DIR" if build.data is None else "leave --channels out",
        )
    if asked != "auto":
        return asked == "readers"
    trained = build.recipe.learn.schedule not in ("auto", "one-shot")
    chosen = build.recipe.prune.criterion == "auto" and not trained
    return possible and chosen and recover.reconstruct is not False and not brought_zeros(build)


def reordered(score: Tensor, order: IntArray) -> Tensor:
    """The values of a score, the highest to the first channel of an order and so on; equal ones a trifle apart.

    Args:
        score: `[C]`.
        order: Its channels, those that stay longest first.
    """
    values = score.detach().double().sort(descending=True).values.numpy().copy()
    for place in range(1, len(values)):
        values[place] = min(values[place], np.nextafter(values[place - 1], -np.inf))
    found = torch.empty(len(values), dtype=torch.float64)
    found[torch.as_tensor(order.copy())] = torch.as_tensor(values)
    return found
