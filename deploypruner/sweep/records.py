"""What was asked of a sweep, and what it found: the records between the driver, the analysis and the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deploypruner.errors import RecipeError
from deploypruner.ranges import check_number
from deploypruner.sweep.space import STD_BUCKETS

HERE = "here"
"""In the place of an address: Ray is started on this machine, for this sweep."""

AUTO = "auto"
"""The cluster that this machine belongs to."""


@dataclass(frozen=True)
class SweepSettings:
    """How large a sweep is.

    Args:
        samples: Recipes of the population, each trained.
        std: The standard deviation of their ratios is from the first to below the second.
        candidates: Recipes that the refined search looks at before any training; 0 for no refined search.
        finalists: The best of them, which are trained.
        again: New seeds that the winners are trained with.
        workers: Processes at a time.
        ray: Where trials are tasks of Ray: HOST:PORT, `HERE` or `AUTO`; "" for processes of this machine.

    Raises:
        RecipeError: A number out of range, or no address.
    """

    samples: int = 64
    std: tuple[float, float] = (STD_BUCKETS[0], STD_BUCKETS[-1])
    candidates: int = 64
    finalists: int = 4
    again: int = 2
    workers: int = 1
    ray: str = ""

    def __post_init__(self) -> None:
        check_number("--samples", self.samples, least=1, hint="64 shows a distribution, 8 are a first look")
        check_number("--candidates", self.candidates, least=0, hint="64 is a start, 0 leaves the refined search out")
        check_number("--finalists", self.finalists, least=1, hint="4 is a start")
        check_number("--again", self.again, least=0, hint="2 is a start, 0 trains no winner again")
        check_number("--workers", self.workers, least=1, most=1024, hint="1 for each core is a start")
        check_number("--ratio-std", self.std[0], least=0, below=self.std[1], hint="0,0.3 is the whole space")
        check_number("--ratio-std", self.std[1], above=0, most=1, hint="0,0.3 is the whole space")
        if self.ray not in ("", HERE, AUTO):
            host_and_port(self.ray)


def host_and_port(address: str) -> tuple[str, int]:
    """Both of "HOST:PORT", where a cluster of Ray has its head.

    Raises:
        RecipeError: It is not that.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise RecipeError(
            f"--ray {address} is no address of a cluster",
            hint="write HOST:PORT, as `ray start --head` prints it, or auto on a machine of the cluster",
        )
    return host.strip("[]"), int(port)


@dataclass(frozen=True)
class DenseModel:
    """What everything is compared with.

    Args:
        macs: Multiply-adds of one sample.
        params: Parameters of the inference graph.
        ms: Measured; None where nothing was timed.
    """

    macs: int
    params: int
    ms: float | None

    @property
    def macs_per_param(self) -> float:
        """The computation budget of a parameter, MACs / parameters."""
        return self.macs / self.params


@dataclass(frozen=True)
class Sample:
    """A trained recipe, as the analysis sees it.

    Args:
        name: Identity of its trial.
        drop: Points lost; smaller is better.
        macs: Multiply-adds.
        params: Parameters.
        std: Standard deviation of the ratios.
        ms: Predicted; None where nothing is predicted.
    """

    name: str
    drop: float
    macs: int
    params: int
    std: float
    ms: float | None

    def budget(self, dense: DenseModel) -> float:
        """MACs per parameter, that of the dense model being 1."""
        return self.macs / self.params / dense.macs_per_param


@dataclass(frozen=True)
class Bucket:
    """The recipes whose ratios have a standard deviation from `low` to below `high`.

    Args:
        low: Limit.
        high: Limit.
        drops: Points lost by each, ascending.
    """

    low: float
    high: float
    drops: tuple[float, ...]

    @property
    def edf(self) -> tuple[tuple[float, float], ...]:
        """(drop, share of the recipes that lose less), for every drop: F(e) = 1/n sum 1[e_i < e]."""
        count = len(self.drops)
        return tuple((drop, sum(other < drop for other in self.drops) / count) for drop in self.drops)


@dataclass(frozen=True)
class Optimum:
    """Where the drop is smallest along the computation budget per parameter, by a parabola through all recipes.

    Args:
        at: MACs per parameter, that of the dense model being 1.
        interval: Of 95 %, from bootstrap samples of the recipes.
        drop: That the parabola predicts there.
        inside: Share of the bootstrap samples whose parabola has its minimum inside the observed range; the others
            are at an end of it.
        observed: Smallest and largest budget of the recipes.
    """

    at: float
    interval: tuple[float, float]
    drop: float
    inside: float
    observed: tuple[float, float]


@dataclass(frozen=True)
class Conjecture:
    """One of the paper's statements, in our words, and what this population says about it.

    Args:
        number: 1 to 4.
        claim: The statement.
        verdict: "supported", "contradicted", "not shown" or "not tested".
        evidence: Numbers, in full sentences.
    """

    number: int
    claim: str
    verdict: str
    evidence: str


@dataclass(frozen=True)
class Winner:
    """A recipe that did best in its phase.

    Args:
        name: Identity of its trial.
        phase: "space" or "refined".
        drop: Points lost in the trial that it was chosen by.
        again: Points lost with other seeds.
        macs: Multiply-adds.
        params: Parameters.
        ms: Predicted; None where nothing is.
        widths: Group id -> channels that stay.
    """

    name: str
    phase: str
    drop: float
    again: tuple[float, ...]
    macs: int
    params: int
    ms: float | None
    widths: dict[str, int]

    @property
    def expected(self) -> float:
        """Points lost with seeds that it was not chosen by; what it was chosen by where there are none."""
        return sum(self.again) / len(self.again) if self.again else self.drop


@dataclass(frozen=True)
class SweepFound:
    """Everything that sweep.json holds.

    Args:
        model: Its name.
        command: That made it.
        budget: What every recipe costs, as on the command line: "--macs 0.5".
        quality: What is lost, in words: "accuracy", or what agreement stands in its place.
        labelled: Is it counted on labels?
        dense_quality: Of the dense model.
        dense: What recipes are compared with.
        samples: The population.
        failed: (identity, why) of trials that came to nothing.
        buckets: By standard deviation, those that hold recipes.
        optimum: None of too few recipes.
        conjectures: 1 to 4.
        looks: How many recipes the refined search looked at.
        winners: The best of the population, then that of the refined search.
        recipe_file: Name of the recipe of the better one.
        notes: What else there is to know, sentences without their stop.
        speed: How milliseconds were predicted, empty where they were not.
        seconds: Of all trials together.
    """

    model: str
    command: str
    budget: str
    quality: str
    labelled: bool
    dense_quality: float
    dense: DenseModel
    samples: tuple[Sample, ...]
    failed: tuple[tuple[str, str], ...]
    buckets: tuple[Bucket, ...]
    optimum: Optimum | None
    conjectures: tuple[Conjecture, ...]
    looks: int
    winners: tuple[Winner, ...]
    recipe_file: str
    notes: tuple[str, ...]
    speed: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def best(self) -> Winner:
        """The winner that loses least with seeds it was not chosen by."""
        return min(self.winners, key=lambda winner: winner.expected)
