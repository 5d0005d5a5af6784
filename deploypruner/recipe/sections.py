"""The sections of a recipe, but the one on channels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploypruner import registries
from deploypruner.errors import RecipeError
from deploypruner.ranges import THREADS, check_number
from deploypruner.recipe.data import DataSettings
from deploypruner.recipe.dynamic import parse
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.learn import LearnSettings
from deploypruner.recipe.option import (
    BUDGET,
    CHANNELS,
    MEASURING,
    MODEL,
    RECOVERY,
    check_names,
    documented,
    keyed,
    option,
    section,
)
from deploypruner.target import WeightBits

Method = Literal["auto", "minmax", "percentile", "entropy"]
OPEN: Literal["auto"] = "auto"
"""Number of threads that is left open."""


@documented
@dataclass(frozen=True)
class ModelRecipe:
    """Where the model comes from."""

    source: str = option(
        "",
        "MODEL as on the command line.",
    )
    weights: Path | None = option(
        None,
        "Weights for package.module:factory: a safetensors file or a state dict.",
        flag="--weights",
        basic=True,
        group=MODEL,
    )
    input_shapes: tuple[tuple[int, ...], ...] = option(
        (),
        "Shape of each input, batch included, where the source or the data do not say it; repeat.",
        flag="--input-shape",
        basic=True,
        metavar="1,3,224,224",
        group=MODEL,
    )
    trust_pickle: bool = option(
        False,
        "Permission for a pickled module to run its code.",
        flag="--trust-pickle",
        basic=True,
        group=MODEL,
    )
    dynamic: tuple[str, ...] = option(
        (),
        "Axes of the inputs that stay open beside the batch: 2,3, or NAME:AXIS=MIN..MAX, auto or none; repeat.",
        flag="--dynamic",
        metavar="2,3",
        shown="a .pt2's own",
        group=MODEL,
    )

    def __post_init__(self) -> None:
        parse(self.dynamic)  # checks it

    def require_source(self) -> None:
        """Make sure that a model is named.

        Raises:
            RecipeError: None is.
        """
        if not self.source:
            raise RecipeError("no MODEL given", hint="name it first, or as source under [model] of the recipe")


@documented
@dataclass(frozen=True)
class DataRecipe:
    """Where the data comes from and how samples are prepared."""

    source: str | None = option(
        None,
        "Data: an image folder, an .npz, or package.module:factory of loaders.",
        flag="--data",
        basic=True,
        metavar="DIR",
        group=MODEL,
    )
    settings: DataSettings = section(DataSettings, "Preparation of the samples.")
    classes: Path | None = option(
        None,
        "File with the names of the model's classes in the order of its outputs, for other class folders.",
        flag="--classes",
        metavar="FILE",
        group=MODEL,
    )
    allow_chance: bool = option(
        False,
        "Permission to go on though the dense model does no better than chance on the labels.",
        flag="--allow-chance",
        group=MODEL,
    )
    embed_preprocessing: bool = option(
        False,
        "Whether the file to ship is written once more with the preprocessing of images inside: uint8 NHWC goes in.",
        flag="--embed-preprocessing",
        group=MODEL,
    )


@documented
@dataclass(frozen=True)
class SearchRecipe:
    """How a plan for a budget of time is found: what its choices are worth, and which of many plans is the best."""

    worth_samples: int = option(
        256,
        "Number of training samples that the worth of every width and branch is measured on.",
    )
    plans: int = option(
        16,
        "Number of plans of equal predicted time that are judged; 1 for none but the first.",
    )
    held_out: int = option(
        512,
        "Number of training samples that plans are judged on, none of which layers were reconstructed on.",
    )
    minutes: float = option(
        15.0,
        "Minutes for the whole search under a budget of time; after that, what is not essential is skipped, and "
        "the report says what.",
        flag="--search-minutes",
        metavar="MINUTES",
        group=BUDGET,
    )

    def __post_init__(self) -> None:
        check_number("search.worth_samples", self.worth_samples, least=1, hint="256 is plenty")
        check_number("search.plans", self.plans, least=1, hint="16 suits most models")
        check_number("search.held_out", self.held_out, least=1, hint="512 is plenty")
        check_number("--search-minutes", self.minutes, least=0, hint="15 suits most models")


@documented
@dataclass(frozen=True)
class LearnRecipe:
    """How channels are chosen while the dense model is trained, before they are removed."""

    schedule: str = option(
        "auto",
        "Schedule by which channels are removed, see `list schedules`; auto: learned for a criterion that "
        "trains its masks, one-shot for every other.",
        flag="--schedule",
        metavar="NAME",
        group=CHANNELS,
        names=registries.schedules,
        to="channels",
        also=("auto",),
    )
    epochs: int = option(
        3,
        "Epochs of the training in which channels are chosen, at least 0; one-shot has none.",
        flag="--learn-epochs",
        metavar="N",
        group=CHANNELS,
    )
    pace: LearnSettings = section(LearnSettings, "Pace of the iterative and the gradual schedule.")
    settings: FinetuneSettings = section(
        FinetuneSettings, "Settings of that training; its `epochs` is the one above.", flags=False
    )

    def __post_init__(self) -> None:
        check_names(self)
        check_number("--learn-epochs", self.epochs, least=0, hint="3 is a start")


@documented
@dataclass(frozen=True)
class RecoverRecipe:
    """How accuracy is brought back."""

    epochs: int | Literal["auto"] = option(
        "auto",
        "Epochs of fine-tuning, at least 0; auto: what data and the gap to the dense model ask for.",
        flag="--epochs",
        basic=True,
        metavar="N|auto",
        group=RECOVERY,
    )
    minutes: float = option(
        60.0,
        'Minutes of the longest training that "auto" plans; 20 at most for few images without labels.',
    )
    reconstruct: bool | Literal["auto"] = option(
        "auto",
        "Whether the kept weights of each layer are solved for the dense layer's outputs first; auto: with "
        "data, where torch.export traces the model.",
        flag="--reconstruct/--no-reconstruct",
        group=RECOVERY,
    )
    reconstruct_samples: int = option(
        256,
        "Number of training samples that is done on; their labels are not looked at.",
    )
    batchnorm_batches: int = option(
        50,
        "Number of training batches the running statistics are averaged over.",
    )
    train: str = option(
        "",
        "Your own train(student, teacher, data) in place of the built-in fine-tuning.",
        flag="--train",
        metavar="MODULE:FUNCTION",
        group=RECOVERY,
    )
    settings: FinetuneSettings = section(
        FinetuneSettings, "Settings of the built-in fine-tuning; its `epochs` is the one above."
    )

    def __post_init__(self) -> None:
        check_number("--epochs", 1 if self.epochs == "auto" else self.epochs, least=0, hint="0 skips fine-tuning")
        check_number("recover.minutes", self.minutes, least=0, hint="60 is a start")
        check_number("recover.reconstruct_samples", self.reconstruct_samples, least=1, hint="256 is plenty")
        check_number("recover.batchnorm_batches", self.batchnorm_batches, least=1, hint="50 is plenty")

    @property
    def trains(self) -> bool:
        """Is there any fine-tuning?"""
        return self.epochs == "auto" or self.epochs > 0


@documented
@dataclass(frozen=True)
class QuantizeRecipe:
    """How int8 ranges are found."""

    samples: int = option(
        256,
        "Number of calibration samples, at least 1.",
    )
    method: Method = option(
        "auto",
        "Way in which ranges follow from the samples: minmax, percentile or entropy, see `quantize.calibrate`; "
        "auto: for each activation the one that keeps best what is computed from it, as a part of the repair.",
    )
    repair: bool = option(
        True,
        "Whether int8 is repaired, with data: channels equalized, ranges chosen, weights rounded for the layers' "
        "outputs, biases corrected; every step is undone where it does not help.",
        flag="--quantize-repair/--no-quantize-repair",
        group=RECOVERY,
    )
    weight_bits: WeightBits = option(
        "auto",
        "Bits of int8 weights; auto: 8, or 7 where int8 sums saturate on the target (x86 without VNNI). 7 makes "
        "files for such processors elsewhere.",
        flag="--weight-bits",
        group=RECOVERY,
    )
    qat: int = option(
        0,
        "Epochs of quantization-aware training of the pruned int8 file as it is written, with the dense model as "
        "teacher; 0 for none. The best epoch is kept, and only if it is better than the file was.",
        flag="--qat",
        metavar="EPOCHS",
        group=RECOVERY,
    )

    def __post_init__(self) -> None:
        check_number("quantize.samples", self.samples, least=1, hint="256 is plenty")
        check_number("quantize.qat", self.qat, least=0, hint="1 or 2 are usual, 0 is none")


@documented
@dataclass(frozen=True)
class MeasureRecipe:
    """What is measured, and for how long."""

    runtimes: tuple[str, ...] = option(
        (),
        "Runtimes that are measured, see `list runtimes`; repeat for several.",
        flag="--runtime",
        basic=True,
        metavar="NAME",
        shown="openvino and onnxruntime",
        group=MEASURING,
        names=registries.runtimes,
    )
    precision: Literal["auto", "fp32", "int8"] = option(
        "auto",
        "Numbers that --latency and --speedup are for; auto: the fastest that keeps the accuracy.",
        flag="--precision",
        basic=True,
        group=BUDGET,
    )
    allow_bf16: bool = option(
        False,
        "Permission for OpenVINO to compute in bf16 what is float: timed and judged as one more runtime, "
        "openvino-bf16, where the CPU has bf16.",
        flag="--allow-bf16",
        group=MEASURING,
    )
    accuracy_drop: float | None = option(
        None,
        "Points that everything together may cost: of accuracy, mIoU or F1, hundredths of R2, percent of your "
        "own metric; without labels, of agreement with the dense model. By default int8 alone may cost 1 (5).",
        flag="--accuracy-drop",
        basic=True,
        metavar="POINTS",
        shown="3, of agreement 10",
        group=BUDGET,
    )
    tasks: tuple[str, ...] = option(
        (),
        "Task of the outputs, or of one, where labels and answers do not say it, see `list tasks`; repeat.",
        flag="--task",
        metavar="[OUTPUT=]TASK",
        group=MODEL,
    )
    metric: str = option(
        "",
        "Your own metric(outputs, labels) -> float in place of the tasks' own, such as mAP; higher is better.",
        flag="--metric",
        metavar="MODULE:FUNCTION",
        group=MODEL,
    )
    threads: int | Literal["auto"] = option(
        1,
        "Number of threads of every runtime, 1 to 1024; auto: as many as the model is fastest with.",
        flag="--threads",
        basic=True,
        metavar="N",
        group=MEASURING,
    )
    seconds: float = option(
        20.0,
        "Seconds for the interleaved rounds of all artifacts together, at least 1.",
        flag="--seconds",
        basic=True,
        metavar="SECONDS",
        group=MEASURING,
    )
    table_seconds: float = option(
        120.0,
        "Seconds for timing layers, for a budget of milliseconds or a speed-up.",
    )
    samples: int = option(
        10_000,
        "Number of validation samples behind accuracy and agreement, at most.",
    )

    def __post_init__(self) -> None:
        check_number(
            "--accuracy-drop", self.accuracy_drop, least=0, hint="1 lets everything cost one point of accuracy"
        )
        check_names(self)
        for task in self.tasks:
            with keyed("tasks"):
                registries.tasks.check(task.rpartition("=")[2])
        check_number("measure.table_seconds", self.table_seconds, least=1, hint="120 suits most models")
        if self.threads != OPEN:
            check_number("--threads", self.threads, least=1, most=THREADS, hint="1 times most steadily")
        check_number("--seconds", self.seconds, least=1, hint="20 suits most models")
        check_number("measure.samples", self.samples, least=1, hint="10000 suits most data sets")
