"""Everything that decides a build, in one record: what a recipe file holds and what the command line sets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from deploypruner.budget import Budget
from deploypruner.errors import RecipeError
from deploypruner.graph.asked_axes import parse
from deploypruner.learn.settings import LearnSettings
from deploypruner.patterns import AUTO, CHANNEL
from deploypruner.prune.constraints import Constraints, Depth, Heads, LayerConstraint, Pieces, Statistics
from deploypruner.quantize.calibrate import Method
from deploypruner.ranges import SEEDS, THREADS, check_number
from deploypruner.recover.settings import FinetuneSettings
from deploypruner.recover.sparse.settings import SparseSettings
from deploypruner.sources.batches import DataSettings

DEFAULT_MACS = 0.5
BUDGETS = ("latency", "speedup", "macs")

# Keys of the nested settings that another key decides -> that key; they are not part of a recipe file.
DERIVED = {
    "recover.settings.epochs": "recover.epochs",
    "recover.settings.seed": "seed",
    "learn.settings.epochs": "learn.epochs",
    "learn.settings.seed": "seed",
}
# No clipping is an infinite norm.
_MAY_BE_INFINITE = ("recover.settings.clip_norm", "learn.settings.clip_norm")


@dataclass(frozen=True)
class ModelRecipe:
    """Where the model comes from.

    Args:
        source: MODEL as on the command line.
        weights: Safetensors or state dict for a factory's model.
        input_shapes: One shape per input, batch included; empty where the source or the data says.
        trust_pickle: Allow a pickled module to run its code.
        dynamic: Axes of the inputs that stay open beside the batch: "2,3", "NAME:AXIS=MIN..MAX", or "auto" or "none"
            alone; empty for those that a .pt2 file leaves open.
    """

    source: str = ""
    weights: Path | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    trust_pickle: bool = False
    dynamic: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parse(self.dynamic)  # checks it


@dataclass(frozen=True)
class DataRecipe:
    """Where the data comes from and how samples are prepared.

    Args:
        source: DATA as on the command line, None for a build without data.
        settings: Preparation of the samples.
        classes: File with the names of the model's classes, in the order of its outputs.
        allow_chance: Go on though the dense model does no better than chance on the labels.
    """

    source: str | None = None
    settings: DataSettings = field(default_factory=DataSettings)
    classes: Path | None = None
    allow_chance: bool = False


@dataclass(frozen=True)
class PruneRecipe:
    """How channels are chosen.

    At most one of the first three is set; without any, half of the multiply-adds may remain where channels are
    removed, or all that the widths of scope "recipe" leave.

    Args:
        latency: Of one inference on the target: milliseconds, or text such as "5ms@p95".
        speedup: Over the dense model in the same runtime, precision and threads, at least.
        macs: Fraction of the multiply-adds that may remain, 0 < macs <= 1.
        patterns: "channel", a sparse pattern such as "2:4" or "nm64", or both; without "channel" none is removed.
            "auto" in place of a sparse pattern chooses one for every layer; alone, it also takes a budget of time.
        criterion: Registered name, or "auto": taylor with data, magnitude without.
        parameters: Fields of the criterion.
        normalizer: Registered name of what makes scores comparable across groups, or "auto": the criterion's own.
        scope: Name of a scope; "recipe" takes the widths from `layers` and has no budget.
        step: Widths become multiples of this.
        exclude: Patterns of modules that are left alone, see `prune.constraints`.
        min_width: Output channels every layer keeps.
        max_cut: Largest share of a layer's channels that may go.
        heads: "auto", "columns", "heads" or "both": what of an attention is cut.
        statistics: "auto", "keep" or "prune" channels that a normalisation averages over.
        depth: "auto" or "keep": whether a budget of time may leave out whole residual branches.
        channels: Which channels of a width stay: "scores", those of the highest; "readers", those that the layers
            behind miss most once they are solved anew; "auto", readers where layers are reconstructed and no
            criterion was named.
        pieces: "equal" or "free": whether equal parts of one tensor (chunk) keep equal counts of channels.
        layers: Limits for some layers, a [[prune.layers]] table each.
        samples: How many training samples a criterion that needs data looks at.
        batch_size: Samples per scoring minibatch.
    """

    latency: float | str | None = None
    speedup: float | None = None
    macs: float | None = None
    patterns: tuple[str, ...] = (CHANNEL,)
    criterion: str = "auto"
    parameters: dict[str, float | int | str | bool] = field(default_factory=dict)
    normalizer: str = "auto"
    scope: str = "global"
    step: int = 8
    exclude: tuple[str, ...] = ()
    min_width: int = Constraints.min_width
    max_cut: float = Constraints.max_cut
    heads: Heads = Constraints.heads
    statistics: Statistics = Constraints.statistics
    depth: Depth = Constraints.depth
    channels: Literal["auto", "scores", "readers"] = "auto"
    pieces: Pieces = Constraints.pieces
    layers: tuple[LayerConstraint, ...] = ()
    samples: int = 512
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_number("--step", self.step, least=1, hint="8, 16 or 32 suit int8 kernels")
        check_number("prune.samples", self.samples, least=1, hint="512 is plenty")
        check_number("prune.batch_size", self.batch_size, least=1, hint="32 suits most models")
        if self.latency is None and self.speedup is None and self.macs is None:
            object.__setattr__(self, "macs", self._default_macs)
        timed, auto = self.macs is None, AUTO in self.patterns
        if CHANNEL in self.patterns and auto and timed:
            raise RecipeError(
                f"{self.budget} can be met by removing channels or by zeros, and --pattern says both",
                hint=f"give --macs for the channels and --sparsity for the zeros, or --pattern {CHANNEL} or {AUTO}",
            )
        if CHANNEL not in self.patterns and self.macs != 1 and not (auto and timed):
            raise RecipeError(
                f"a budget of {self.budget} removes channels, and --pattern says {', '.join(self.patterns)}",
                hint=f"add {CHANNEL} to --pattern, or leave out the budget",
            )
        _ = self.constraints, self.budget  # checks them

    @property
    def _default_macs(self) -> float:
        decided = CHANNEL in self.patterns and self.scope != "recipe"
        return DEFAULT_MACS if decided else 1.0

    @property
    def budget(self) -> Budget:
        """What the compiled model may cost."""
        return Budget(macs=self.macs, latency=self.latency, speedup=self.speedup)

    @property
    def constraints(self) -> Constraints:
        """What may be cut, and how far."""
        return Constraints(
            exclude=self.exclude,
            min_width=self.min_width,
            max_cut=self.max_cut,
            heads=self.heads,
            statistics=self.statistics,
            depth=self.depth,
            pieces=self.pieces,
            layers=self.layers,
        )


@dataclass(frozen=True)
class SearchRecipe:
    """How a plan for a budget of time is found: what its choices are worth, and which of many plans is the best.

    Args:
        worth_samples: Training samples that the worth of every width and branch is measured on.
        plans: How many plans of equal predicted time are judged; 1 for none but the first.
        held_out: Training samples that plans are judged on, none of which layers were reconstructed on.
        minutes: For the whole search; when these are over nothing begins that a plan can be had without.
    """

    worth_samples: int = 256
    plans: int = 16
    held_out: int = 512
    minutes: float = 15.0

    def __post_init__(self) -> None:
        check_number("search.worth_samples", self.worth_samples, least=1, hint="256 is plenty")
        check_number("search.plans", self.plans, least=1, hint="16 suits most models")
        check_number("search.held_out", self.held_out, least=1, hint="512 is plenty")
        check_number("--search-minutes", self.minutes, least=0, hint="15 suits most models")


@dataclass(frozen=True)
class LearnRecipe:
    """How channels are chosen while the dense model is trained, before they are removed.

    Args:
        schedule: "one-shot", "iterative", "gradual", "learned", or "auto": learned for a criterion whose masks are
            trained, one-shot for every other.
        epochs: Of that training; it does not take place for one-shot.
        pace: When how many channels go, for the iterative and the gradual schedule.
        settings: Of the training; its `epochs` is the one above.
    """

    schedule: str = "auto"
    epochs: int = 3
    pace: LearnSettings = field(default_factory=LearnSettings)
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        check_number("--learn-epochs", self.epochs, least=0, hint="3 is a start")


@dataclass(frozen=True)
class RecoverRecipe:
    """How accuracy is brought back.

    Args:
        epochs: Fine-tuning epochs; 0 for none, "auto" for what data and the gap to the dense model ask for
            (`recover.budget`).
        minutes: Longest training that "auto" plans; 20 at most for few images without labels.
        reconstruct: Solve the kept weights of each layer for the dense layer's outputs before anything else; "auto"
            wherever it can be done: with data, in models that torch.export traces.
        reconstruct_samples: Training samples that is done on; their labels are not looked at.
        batchnorm_batches: Training batches the running statistics are averaged over.
        train: `package.module:function` that trains instead of the built-in fine-tuning, "" for none.
        settings: The built-in fine-tuning; its `epochs` is the one above.
    """

    epochs: int | Literal["auto"] = "auto"
    minutes: float = 60.0
    reconstruct: bool | Literal["auto"] = "auto"
    reconstruct_samples: int = 256
    batchnorm_batches: int = 50
    train: str = ""
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)

    def __post_init__(self) -> None:
        check_number("--epochs", 1 if self.epochs == "auto" else self.epochs, least=0, hint="0 skips fine-tuning")
        check_number("recover.minutes", self.minutes, least=0, hint="60 is a start")
        check_number("recover.reconstruct_samples", self.reconstruct_samples, least=1, hint="256 is plenty")
        check_number("recover.batchnorm_batches", self.batchnorm_batches, least=1, hint="50 is plenty")

    @property
    def trains(self) -> bool:
        """Is there any fine-tuning?"""
        return self.epochs == "auto" or self.epochs > 0


@dataclass(frozen=True)
class QuantizeRecipe:
    """How int8 ranges are found.

    Args:
        samples: Calibration samples.
        method: How ranges follow from the samples, see `quantize.calibrate`.
    """

    samples: int = 256
    method: Method = "minmax"

    def __post_init__(self) -> None:
        check_number("quantize.samples", self.samples, least=1, hint="256 is plenty")


@dataclass(frozen=True)
class MeasureRecipe:
    """What is measured, and for how long.

    Args:
        runtimes: Registered names; empty means all that are measured by default.
        precision: What a budget of milliseconds or a speed-up is for: "fp32", "int8", or "auto": the fastest that
            keeps the accuracy.
        accuracy_drop: Points that everything together may cost, pruning and int8: of accuracy, mIoU or F1, hundredths
            of R2, percent of the dense model's value for a metric of the user's; without labels of agreement with the
            dense model. None for 3 (10 of agreement), of which int8 alone may cost 1 (5) before "auto" prefers fp32.
        tasks: What outputs are, where labels and answers do not say: "TASK", or "OUTPUT=TASK" each.
        metric: `package.module:function` in place of the tasks' metrics, see `measure.own_metric`; "" for none.
        threads: Threads of every runtime.
        seconds: Time for the interleaved rounds of all artifacts together.
        table_seconds: Time for timing layers, for a budget of milliseconds or a speed-up.
        samples: Validation samples behind accuracy and agreement, at most.
    """

    runtimes: tuple[str, ...] = ()
    precision: Literal["auto", "fp32", "int8"] = "auto"
    accuracy_drop: float | None = None
    tasks: tuple[str, ...] = ()
    metric: str = ""
    threads: int = 1
    seconds: float = 20.0
    table_seconds: float = 120.0
    samples: int = 10_000

    def __post_init__(self) -> None:
        check_number(
            "--accuracy-drop", self.accuracy_drop, least=0, hint="1 lets everything cost one point of accuracy"
        )
        check_number("measure.table_seconds", self.table_seconds, least=1, hint="120 suits most models")
        check_number("--threads", self.threads, least=1, most=THREADS, hint="1 times most steadily")
        check_number("--seconds", self.seconds, least=1, hint="20 suits most models")
        check_number("measure.samples", self.samples, least=1, hint="10000 suits most data sets")


@dataclass(frozen=True)
class Recipe:
    """A whole build; sections of a recipe file have these names."""

    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    prune: PruneRecipe = field(default_factory=PruneRecipe)
    search: SearchRecipe = field(default_factory=SearchRecipe)
    learn: LearnRecipe = field(default_factory=LearnRecipe)
    sparse: SparseSettings = field(default_factory=SparseSettings)
    recover: RecoverRecipe = field(default_factory=RecoverRecipe)
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    measure: MeasureRecipe = field(default_factory=MeasureRecipe)
    target: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, seed in (("--seed", self.seed), ("data.settings.seed", self.data.settings.seed)):
            check_number(name, seed, least=0, most=SEEDS, hint="0 is the default")
        for place, value in _numbers(asdict(self), ""):
            if place not in _MAY_BE_INFINITE:
                bound = SEEDS if isinstance(value, int) else sys.float_info.max
                check_number(place, value, least=-bound, most=bound, hint=f"correct the value of {place}")


def resolved_toml(recipe: Recipe) -> str:
    """The recipe with every default spelled out; what is not set is left out, as TOML has no null."""
    document = _plain(asdict(recipe))
    for name in DERIVED:
        *sections, key = name.split(".")
        section = document
        for part in sections:
            section = section[part]
        del section[key]
    return tomli_w.dumps(document)


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every number in it, with the key it stands under."""
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _numbers(held, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _numbers(held, place)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | Path):
        # TOML cannot say bytes that are no UTF-8; they are readable at least.
        return str(value).encode(errors="backslashreplace").decode()
    return value
