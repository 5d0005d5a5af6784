"""Everything a search for a plan under a budget of time needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from deploypruner.channels.criteria import Normalizer
from deploypruner.graph import Graph, Keep
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.measure import Job
from deploypruner.progress import Progress
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.records import Artifact, Quality
from deploypruner.runtime import Array
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.losses import Losses


@dataclass(frozen=True)
class SearchRequest:
    """Everything the search needs to know.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        budget: Of kind "latency" or "speedup".
        jobs: The dense model in every precision and runtime that may be chosen.
        normalizer: Makes scores of different groups comparable.
        step: Widths become multiples of this.
        constraints: What may be cut, and how far.
        threads: Of every runtime.
        accuracy_drop: Points int8 may cost, see `choose_setting`.
        qualities: Of `jobs`; only asked for where there is more than one.
        floats: Weights of layers that an earlier pass found to need float in int8.
        mixed: (runtime, weights of layers to be float at least) -> the dense model in int8 with these in float and
            those that its accuracy needs, and the weights of all of them; None where there is nothing to gain.
        feeds: One array per input, None for random ones.
        table_seconds: For timing layers.
        cache: Folder of the latency tables, None for the user's cache folder.
        worth: Measures what widths and branches are worth, called once the budget is in reach; None without data.
            Is told when to end: as `enough` of `measure_worth`.
        judge: Makes what judges plans before training, called like `worth`; None without data.
        train: Repairs a plan, trains it briefly and judges it; None where no training will follow.
        keeping: Points of top-1 that may be lost where nothing will be trained after this; None where it will.
        allowed: Points that everything together may cost; for a time that is to be found.
        paces: Milliseconds that earlier passes found and that lost too much in the end.
        plans: Size of the pool that is judged.
        minutes: When these are over nothing begins that a plan can be had without.
        clock: For that, and for every other question about time.
        folder: Where plans that were proposed are kept, None for nowhere.
        seed: Decides every random choice.
        progress: Told about the layers' timing, and about plans that are judged.
        say: Called with a line for each step.
    """

    graph: Graph
    scores: Mapping[str, Tensor]
    budget: Budget
    jobs: Sequence[Job]
    normalizer: Normalizer = "none"
    step: int = 8
    constraints: Constraints = field(default_factory=Constraints)
    threads: int = 1
    accuracy_drop: float = 1.0
    qualities: Callable[[Sequence[Job]], Sequence[Quality | None]] | None = None
    floats: tuple[str, ...] = ()
    mixed: Callable[[str, tuple[str, ...]], tuple[Artifact, tuple[str, ...]] | None] | None = None
    feeds: Sequence[Array] | None = None
    table_seconds: float = 120.0
    cache: Path | None = None
    worth: Callable[[Callable[[float], bool]], Losses] | None = None
    judge: Callable[[], Judge] | None = None
    train: Callable[[Judge, Keep], Verdict] | None = None
    keeping: float | None = None
    allowed: float = 3.0
    paces: tuple[float, ...] = ()
    plans: int = 16
    minutes: float = float("inf")
    clock: Clock = field(default_factory=current_clock)
    folder: Path | None = None
    seed: int = 0
    progress: Progress | None = None
    say: Callable[[str], None] = lambda line: None
