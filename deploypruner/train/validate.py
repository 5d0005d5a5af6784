"""Top-1 accuracy of a torch module on labelled data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.train.batches import TrainingBatches
from deploypruner.train.losses import first_output
from deploypruner.train.modes import device_of, evaluating


def top1_percent(module: nn.Module, batches: TrainingBatches, *, batch_size: int = 256) -> float:
    """Share of samples, in percent, whose largest output [N, K] is at the label.

    The module runs in evaluation mode without gradients and gets its mode back.

    Raises:
        InputError: The data has no labels, or no samples.
    """
    if not batches.labelled:
        raise InputError("accuracy needs labels, and the data has none", hint="pass labelled data, or no validation")
    right = seen = 0
    device = device_of(module)
    with evaluating(module), torch.no_grad():
        for inputs, labels in batches.epoch(batch_size=batch_size, seed=0, shuffle=False, augment=False):
            assert isinstance(labels, Tensor), "class indices are one tensor"
            output = first_output(module(*(x.to(device) for x in inputs)))
            right += int((output.argmax(dim=1) == labels.to(device)).sum())
            seen += len(labels)
    if seen == 0:
        raise InputError("the validation data has no samples", hint="check the validation split")
    return 100.0 * right / seen
