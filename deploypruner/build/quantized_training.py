"""Quantization-aware training of a build's int8 file, with the dense float model as teacher."""

from __future__ import annotations

from dataclasses import replace

from deploypruner.build.evaluate import distance, validation
from deploypruner.build.feeds import timing_feeds, verification_feeds
from deploypruner.build.stage import stage_file
from deploypruner.build.state import Build
from deploypruner.qat import QatOutcome, left_out, train_quantized

_CHECKPOINT = stage_file("qat.safetensors")


def train_int8(build: Build, names: tuple[str, str], *, runtime: str) -> QatOutcome | None:
    """Train an int8 file as it rounds, in place; None without data or where nobody asked for it.

    Validated as recovery is: by the metric, or without labels by the distance from the dense outputs.

    Args:
        build: With the pruned model's files written.
        names: Of these, fp32 and int8.
        runtime: That the file is for: what it does not round is not rounded in training.

    Raises:
        InputError: The file has an operator that cannot be trained.
    """
    epochs, data = build.recipe.quantize.qat, build.data
    if not epochs or data is None:
        return None
    fp32, int8 = names
    judged = validation(build) or distance(build)
    settings = replace(
        build.recipe.recover.settings,
        epochs=epochs,
        seed=build.recipe.seed,
        optimizer="sgd",
        optimizer_parameters={},  # recovery's are of another optimizer
        lr=None,
    )
    path = build.folder.claim(_CHECKPOINT)
    feeds = timing_feeds(build) or verification_feeds(build)[0]
    with build.folder.writing(int8) as written:
        outcome = train_quantized(
            build.folder.path(int8),
            written,
            teacher=build.traced.module,
            batches=data.train,
            settings=settings,
            validate=judged.score,
            fp32=build.folder.path(fp32),
            unrounded=left_out(build.folder.path(int8), runtime, feeds),
            loss=build.loss,
            checkpoint=path,
            progress=build.progress,
        )
    path.unlink(missing_ok=True)
    return outcome


def qat_sentence(outcome: QatOutcome) -> str:
    """What came of it, in words."""
    epochs = f"{outcome.epochs} epoch{'' if outcome.epochs == 1 else 's'}"
    if not outcome.best_epoch:
        return f"quantization-aware training made it no better in {epochs}, and is undone"
    before, after = (f"{abs(score):.4g}" for score in (outcome.before, outcome.after))
    return f"quantization-aware training, {epochs}: validation {before} -> {after}"
