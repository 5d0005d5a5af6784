"""What stages hand on: the build so far, with one field for each thing that a stage gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.build.folder import BuildFolder
from deploypruner.build.open_setting import SettingTried
from deploypruner.build.results import LayerPatterns, Learning, Point, Quantized, Recovery
from deploypruner.channels.plan import Plan
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph
from deploypruner.graph.inputs import Inputs, as_inputs
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.logbook import Logbook
from deploypruner.losses import BY_SHAPE, ModelLoss
from deploypruner.measure.elsewhere import measured_on
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.progress import Progress
from deploypruner.recipe import Recipe
from deploypruner.recipe.sections import OPEN
from deploypruner.records import Artifact, Check, Cost, Environment, Row, Timing
from deploypruner.search.certify import Certificate
from deploypruner.search.found import SearchResult
from deploypruner.sources.batches import Data
from deploypruner.sparsity.training import Assigned
from deploypruner.sparsity.training.existing import GIVEN
from deploypruner.sparsity.training.zeros import Zeros
from deploypruner.tasks.recognise import OutputTask

Feeds = list[np.ndarray]


@dataclass(frozen=True)
class Given:
    """What the Python API passes directly instead of naming it in the recipe.

    Args:
        model: Module or program, None to load `recipe.model.source`.
        example_inputs: Example inputs of `model`, positional or by keyword; empty without one.
        data: Anything `sources.as_data` takes, None to load `recipe.data.source`.
        train: Training function in place of the built-in fine-tuning.
        metric: Metric of the user's, None for `recipe.measure.metric`.
    """

    model: nn.Module | ExportedProgram | None = None
    example_inputs: Inputs = ()
    data: object = None
    train: Any = None
    metric: Any = None

    @staticmethod
    def of(
        model: nn.Module | ExportedProgram | str | None,
        example_inputs: Any,
        data: object,
        *,
        train: Any = None,
        metric: Any = None,
    ) -> Given:
        """The objects among what a function of the Python API was called with; `named_sources` has the names."""
        return Given(
            model=None if isinstance(model, str) else model,
            example_inputs=() if example_inputs is None else as_inputs(example_inputs),
            data=None if isinstance(data, str | Path) else data,
            train=train,
            metric=None if isinstance(metric, str) else metric,
        )

    def require_inputs(self, function: str) -> None:
        """Check that a module comes with inputs it can run on.

        Args:
            function: Of the Python API, that was given it.

        Raises:
            RecipeError: It does not.
        """
        if self.model is not None and not self.example_inputs:
            raise RecipeError(
                f"{function} needs example_inputs for a module", hint="pass one batch the model can run on"
            )


def named_sources(model: object, data: object) -> dict[str, str | None]:
    """The names among them, as values of options."""
    return {
        "model": model if isinstance(model, str) else None,
        "data": str(data) if isinstance(data, str | Path) else None,
    }


@dataclass(frozen=True)
class Build:
    """A build so far: the recipe, the folder, and one field for what each stage gives.

    Args:
        recipe: Resolved recipe.
        folder: Where files go.
        command: Command line or call that started the build.
        given: Objects from the Python API.
        progress: Told about long work.
        log: Of everything that is said; the build keeps it in its folder.
        clock: Says how long things take.
        say: Called with a line about what a stage is doing.
        name: Short name of the model (load).
        source: What was loaded (load).
        model: The user's model (load).
        sha256: Fingerprint of its weights (load).
        example_inputs: Its example inputs (load).
        data: Training and validation data, None without (load).
        tasks: What every output is (load).
        loss: What every output is trained and compared by (load).
        doubts: What casts doubt on the data and what is judged by it; also among `remarks` (load).
        metric: Of the user's, None without (load).
        graph: Traced model (trace).
        floats: Weights of layers that an earlier pass found to need float in int8.
        earlier: Points of an earlier pass.
        paces: Milliseconds that earlier passes found and that lost too much in the end.
        tried: What the dense model takes with each number of threads, None where the user gave one (threads).
        scores: Group id -> `[C]` (score).
        criterion: Name of the criterion that scored, and of its normaliser (score).
        plan: What stays (allocate), with the channels that training chose in place of others (learn).
        found: How the plan meets a budget of time, None for a budget of MACs (allocate).
        learning: How channels were chosen in training (learn).
        learned: Parameter or buffer name -> tensor of the dense model to remove channels from, empty where the plan
            is for the model's own weights (learn).
        patterns: How every layer's own pattern was chosen, None where none was (assign).
        assigned: Parameter name -> its pattern and share of zeros, where every layer has its own (assign).
        module: The pruned module (remove), recovered in place of it (recover).
        recovery: What brought accuracy back (recover).
        quantized: What became int8 (quantize; allocate and assign under a budget of time).
        precision: Which layers of the int8 files stay float and why, for the report (quantize).
        checks: Proofs so far (trace, remove, verify).
        artifacts: Every file that will be measured (quantize, export, sparse).
        sparse: What was decided about each layer of the sparse model, empty without zeros (sparse).
        pruned: Predicted cost of the pruned module, zeros counted (recover).
        environment: Of the measuring machine, JSON-able; empty before (measure).
        noise_floor: Of the measurement, as a share of the time (measure).
        timings: Raw timings (measure).
        rows: Report rows (measure).
        certificate: The budget of time, judged on the final artifact (measure).
        remarks: What the user should know, in the order it came up.
        noise: What casts doubt on the times (measure).
        layer_ms: Times of layers, see `layer_table.measured_layers` (measure).
        seconds: Name of each stage so far, and how long it took.
    """

    recipe: Recipe
    folder: BuildFolder
    command: str
    given: Given
    progress: Progress
    log: Logbook = field(default_factory=Logbook)
    say: Callable[[str], None] = lambda line: None
    clock: Clock = field(default_factory=current_clock)
    name: str = ""
    source: str = ""
    model: nn.Module | ExportedProgram | None = None
    sha256: str = ""
    example_inputs: Inputs = ()
    data: Data | None = None
    tasks: tuple[OutputTask, ...] = ()
    loss: ModelLoss = BY_SHAPE
    doubts: tuple[str, ...] = ()
    metric: OwnMetric | None = None
    graph: Graph | None = None
    floats: tuple[str, ...] = ()
    earlier: tuple[Point, ...] = ()
    paces: tuple[float, ...] = ()
    tried: SettingTried | None = None
    scores: dict[str, Tensor] | None = None
    criterion: str = ""
    plan: Plan | None = None
    found: SearchResult | None = None
    learning: Learning = field(default_factory=lambda: Learning("one-shot"))
    learned: dict[str, Tensor] = field(default_factory=dict)
    patterns: LayerPatterns | None = None
    assigned: dict[str, Assigned] = field(default_factory=dict)
    module: nn.Module | None = None
    recovery: Recovery = field(default_factory=Recovery)
    quantized: Quantized = field(default_factory=Quantized)
    precision: dict[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    sparse: dict[str, Any] = field(default_factory=dict)
    pruned: Cost | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    noise_floor: float | None = None
    timings: tuple[Timing, ...] = ()
    rows: tuple[Row, ...] = ()
    certificate: Certificate | None = None
    remarks: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    layer_ms: dict[str, Any] = field(default_factory=dict)
    seconds: tuple[tuple[str, float], ...] = ()

    # What later stages read has been given by earlier ones; these say so to the type checker and the reader.

    @property
    def traced(self) -> Graph:
        """The graph, once there is one."""
        assert self.graph is not None, "stage 'trace' has not run"
        return self.graph

    @property
    def threads(self) -> int:
        """Of every runtime: the user's number, or the fastest, of the dense model and then of whole sparse forms."""
        given = self.recipe.measure.threads
        if given != OPEN:
            return given
        assert self.tried is not None, "stage 'settle' has not run"
        return int(self.sparse.get("threads", self.tried.fastest))

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """Threads that whole sparse forms are tried with: one where the user, or a budget of time, says it."""
        return (self.threads,) if self.tried is None or self.found is not None else self.tried.counts

    @property
    def environments_to_race(self) -> tuple[Environment, ...]:
        """What whole sparse forms are tried in: the one that a budget of time is about, or none to try all."""
        return () if self.found is None else (self.environments.get("openvino", ()),)

    @property
    def environments(self) -> Mapping[str, Environment]:
        """Runtime -> variables of the process in which it runs the dense int8 model fastest."""
        tried = {} if self.tried is None else self.tried.chosen
        raced = self.sparse.get("dense_environment")
        return tried if raced is None else {**tried, "openvino": tuple(raced.items())}

    @property
    def planned(self) -> Plan:
        """The plan, once there is one."""
        assert self.plan is not None, "stage 'allocate' has not run"
        return self.plan

    @property
    def zeros(self) -> Zeros | None:
        """Zeros inside kept layers, asked for or brought along; None without, and before stage `recover`."""
        return self.recovery.sparse

    @property
    def pattern(self) -> str:
        """What the pruned artifacts are pruned by: "channel", "2:4", "channel + 2:4", "channel + given"."""
        given = self.zeros is not None and self.zeros.pattern == GIVEN
        return " + ".join((*self.recipe.prune.patterns, *((GIVEN,) if given else ())))

    @property
    def measured_runtimes(self) -> tuple[str, ...]:
        """Names of the runtimes that are measured."""
        measure = self.recipe.measure
        return measured_on(self.clock.machine, measure.runtimes, allow_bf16=measure.allow_bf16)

    @property
    def compiled(self) -> nn.Module:
        """The pruned module, once there is one."""
        assert self.module is not None, "stage 'remove' has not run"
        return self.module
