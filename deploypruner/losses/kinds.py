"""How one output is off, sample by sample: from its labels, and from the dense model's answer.

Every function takes an output `[N, ...]` and gives `[N]`, so that a mean over samples can be taken and tested.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# A probability nearer to 0 or 1 counts as this near.
_NEAR = 1e-7


def scores_of(output: Tensor, *, axis: int, probabilities: bool) -> Tensor:
    """Scores of classes `[N, K, ...]` whose softmax over axis 1 is the model's answer."""
    scores = output.movedim(axis, 1)
    return scores.clamp_min(_NEAR).log() if probabilities else scores


def logits_of(output: Tensor, *, probabilities: bool) -> Tensor:
    """Numbers whose sigmoid is the model's answer."""
    return torch.logit(output, eps=_NEAR) if probabilities else output


def cross_entropy(scores: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Of scores `[N, K, ...]` with classes `[N, ...]`, in nats, averaged over the places that count.

    Labels below 0, and 255 where there are not so many classes, do not count: as in the metric. One-hot rows
    `[N, K]` are classes, too.
    """
    wanted, counted = class_labels(scores, labels)
    each = F.cross_entropy(scores, wanted, reduction="none", label_smoothing=smoothing)
    return _over_places(each, counted)


def class_labels(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classes `[N, ...]` of scores `[N, K, ...]`, and which of them count; the others are -100."""
    one_hot = labels.ndim == 2 and labels.shape == scores.shape
    wanted = (labels.argmax(dim=1) if one_hot else labels.reshape(len(scores), *scores.shape[2:])).long()
    ignored = (wanted < 0) | ((wanted == 255) & (scores.shape[1] <= 255))
    return wanted.masked_fill(ignored, -100), ~ignored


def right_share(scores: Tensor, labels: Tensor) -> Tensor:
    """`[N]`: share of the places that count whose largest score is at the label."""
    wanted, counted = class_labels(scores, labels)
    return _over_places((scores.argmax(dim=1) == wanted).double(), counted)


def class_divergence(scores: Tensor, dense: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(dense / T) || softmax(scores / T)) over axis 1, in nats, averaged over places.

    T^2 keeps the size of the gradient independent of T.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2.
    """
    ours, theirs = (F.log_softmax(values / temperature, dim=1) for values in (scores, dense))
    each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return each.reshape(len(scores), -1).mean(dim=1) * temperature**2


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Of yes or no decisions `[N, ...]` with labels 0 and 1 of as many numbers, in nats, averaged over decisions."""
    wanted = labels.reshape(logits.shape).to(logits.dtype)
    wanted = wanted * (1 - smoothing) + smoothing / 2
    each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return each.reshape(len(logits), -1).mean(dim=1)


def binary_divergence(logits: Tensor, dense: Tensor, *, temperature: float = 1.0) -> Tensor:
    """T^2 KL between yes and no of the dense model and of this one, in nats, averaged over decisions."""
    ours, theirs = logits / temperature, dense / temperature
    yes = torch.sigmoid(theirs) * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    no = torch.sigmoid(-theirs) * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return (yes + no).reshape(len(logits), -1).mean(dim=1) * temperature**2


def cosine_distance(output: Tensor, dense: Tensor) -> Tensor:
    """1 - the cosine of the angle between the vectors of a sample."""
    return 1 - F.cosine_similarity(output.flatten(1), dense.flatten(1), dim=1)


def relative_squares(output: Tensor, wanted: Tensor, *, spread: float | None = None) -> Tensor:
    """Mean squared error of each sample over `spread`, so that the unit does not matter.

    Args:
        output: `[N, ...]`; one without that axis counts alike for all samples of a batch of one.
        wanted: As many numbers.
        spread: The square that counts as 1: the variance of what is wanted, for 1 - R2. None: the mean square of
            what is wanted in this batch. A share of each sample's own square would be endless near zero.
    """
    wanted = wanted.reshape(output.shape).to(output.dtype)
    tiny = torch.finfo(output.dtype).tiny
    scale = wanted.square().mean().clamp_min(tiny) if spread is None else max(spread, tiny)
    error = (output - wanted).square() / scale
    return error.reshape(len(output), -1).mean(dim=1) if error.ndim else error.reshape(1)


def _over_places(each: Tensor, counted: Tensor) -> Tensor:
    """`[N]`: the mean over the places of a sample that count, 0 where none does."""
    each, counted = each.reshape(len(each), -1), counted.reshape(len(each), -1)
    return (each * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1)
