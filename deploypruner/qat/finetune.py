"""Short fine-tuning of an int8 file with the dense float model as teacher; what became worse is not written."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from deploypruner.losses import ModelLoss
from deploypruner.progress import Progress
from deploypruner.qat.module import QdqModule
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import TrainingBatches
from deploypruner.train.finetune import FinetuneHistory, finetune

# Of the usual rate: the weights are where they belong, and have to move by steps of rounding. Ours.
_GENTLE = 0.05


@dataclass(frozen=True)
class QatOutcome:
    """What quantization-aware training did.

    Args:
        epochs: That ran.
        before: Score of the file as it was, higher is better.
        after: Of the file as it is now; never below `before`.
        best_epoch: Whose weights were written, 0 for those that were there.
    """

    epochs: int
    before: float
    after: float
    best_epoch: int


def train_quantized(
    int8: Path,
    out: Path,
    *,
    teacher: nn.Module | None,
    batches: TrainingBatches,
    settings: FinetuneSettings,
    validate: Callable[[nn.Module], float],
    fp32: Path | None = None,
    unrounded: Collection[str] = (),
    loss: ModelLoss | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> QatOutcome:
    """Fine-tune the weights of a QDQ file as it rounds them, and write the best of them.

    Scales, pairs and the order of operators stay; weights that are zero in `fp32` stay zero.

    Args:
        int8: The file.
        out: File to write; the same bytes as `int8` where no epoch was better.
        teacher: The dense float model; None for labels alone.
        batches: Training data.
        settings: Of the training. A rate that nobody named is a twentieth of the usual one.
        validate: Scores a module in evaluation mode, higher is better.
        fp32: The float file that `int8` was made from.
        unrounded: What the runtime that the file is for leaves out, see `left_out`.
        loss: Of every output; by shape where None.
        checkpoint: As for `finetune`.
        progress: As for `finetune`.

    Raises:
        InputError: The file has an operator that is not known here, or a fixed batch size that is not the data's.
        RecipeError: Neither labels nor a teacher.
    """
    module = QdqModule(int8, zeros=fp32, unrounded=unrounded).eval()
    before = validate(module)
    if settings.lr is None:
        settings = replace(settings, lr=_GENTLE * settings.peak_lr)
    history: FinetuneHistory = finetune(
        module,
        teacher,
        batches,
        replace(settings, patience=settings.patience or settings.epochs),
        checkpoint=checkpoint,
        progress=progress,
        label="quantization-aware training",
        validate=validate,
        loss=loss,
    )
    score = history.score
    better = score is not None and score > before
    if better:
        module.save(out)
    elif out != int8:
        out.write_bytes(int8.read_bytes())
    return QatOutcome(
        len(history.epochs),
        before,
        score if better and score is not None else before,
        history.held if better else 0,
    )
