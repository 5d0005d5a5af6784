"""What a cut costs on each sample: one measure for single cuts and for whole plans."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.recover.losses import label_loss
from deploypruner.search.measured import Kind


def kind_of(outputs: Sequence[Tensor], labels: Tensor | None) -> Kind:
    """What `sample_losses` measures of a model with these outputs.

    Raises:
        InputError: None of them is a floating-point number.
    """
    first = _floating(outputs)[0]
    if first.ndim < 2 or first.shape[1] < 2:
        return "relative error of the outputs"
    if labels is not None:
        return "loss"
    return "KL to the dense outputs" if first.ndim == 2 else "relative error of the outputs"


def sample_losses(outputs: Sequence[Tensor], dense: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """The measure of `kind_of` for each sample, `[N]` in float64; N is 1 where the first output has no batch axis.

    With labels the cross-entropy, over all places of a sample; without, the divergence from the dense network's class
    probabilities; of other outputs the squared error over the mean square of the dense output on all these samples,
    averaged over the outputs. A share of each sample's own square would be endless where the output crosses zero.

    Args:
        outputs: Of the network that is judged; what is no floating-point number is passed over.
        dense: Of the dense network on the same samples.
        labels: Class labels, or None.

    Raises:
        InputError: Labels that do not fit the outputs, or no output that is a floating-point number.
    """
    kind, ours, theirs = kind_of(outputs, labels), _floating(outputs), _floating(dense)
    first = ours[0]
    if kind == "loss":
        assert labels is not None, "the kind says so"
        label_loss(first, labels)  # refuses what does not fit
        each = F.cross_entropy(first, labels.long(), reduction="none")
        return each.flatten(1).mean(dim=1) if each.ndim > 1 else each
    if kind == "KL to the dense outputs":
        divergences = F.kl_div(first.log_softmax(1), theirs[0].log_softmax(1), reduction="none", log_target=True)
        return divergences.sum(dim=1).clamp_min(0)
    samples = len(first) if first.ndim else 1
    return torch.stack([_relative(a, b, samples) for a, b in zip(ours, theirs, strict=True)]).mean(dim=0)


def _floating(outputs: Sequence[Tensor]) -> list[Tensor]:
    found = [tensor.double() for tensor in outputs if tensor.is_floating_point()]
    if not found:
        raise InputError(
            "the model returns no floating-point number that a pruned model could be compared by",
            hint="return the scores instead of the decision made from them",
        )
    return found


def _relative(output: Tensor, dense: Tensor, samples: int) -> Tensor:
    """`[samples]`; an output without that batch axis counts alike for all of them."""
    scale = dense.square().mean().clamp_min(torch.finfo(dense.dtype).tiny)
    error = (output - dense).square() / scale
    if error.ndim and len(error) == samples:
        return error.reshape(samples, -1).mean(dim=1)
    return error.mean().expand(samples)
