"""The stages of a build. Each unpacks the build so far, calls pure functions, and puts the result back.

A stage that takes long saves what it made, so that a killed build resumes after it; the others are run again,
which gives the same result because everything is seeded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.folder import BuildFolder
from deploypruner.graph import Graph
from deploypruner.graph.inputs import Inputs
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.progress import Progress
from deploypruner.prune.plan import Plan
from deploypruner.recipe import Recipe
from deploypruner.records import Artifact, Check, Cost, Row, Timing
from deploypruner.recover.sparse import Assigned
from deploypruner.search.certify import Certificate
from deploypruner.search.found import SearchResult
from deploypruner.sources.batches import Data
from deploypruner.tasks.recognise import OutputTask

Feeds = list[np.ndarray]

GIVEN = "given"
"""Pattern of zeros that the user's model brought along."""


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


@dataclass(frozen=True)
class Build:
    """A build so far: the recipe, the folder, and one field for what each stage gives.

    Args:
        recipe: Resolved recipe.
        folder: Where files go.
        command: Command line or call that started the build.
        given: Objects from the Python API.
        progress: Told about long work.
        say: Called with a line about what a stage is doing.
        name: Short name of the model (load).
        source: What was loaded (load).
        model: The user's model (load).
        sha256: Fingerprint of its weights (load).
        example_inputs: Its example inputs (load).
        data: Training and validation data, None without (load).
        tasks: What every output is (load).
        metric: Of the user's, None without (load).
        graph: Traced model (trace).
        scores: Group id -> `[C]` (score).
        criterion: Name of the criterion that scored, and of its normaliser (score).
        plan: What stays (allocate), with the channels that training chose in place of others (learn).
        found: How the plan meets a budget of time, None for a budget of MACs (allocate).
        learned: Parameter or buffer name -> tensor of the dense model to remove channels from, empty where the plan
            is for the model's own weights (learn).
        assigned: Parameter name -> its pattern and share of zeros, where every layer has its own (assign).
        module: The pruned module (remove), recovered in place of it (recover).
        checks: Proofs so far (trace, remove, verify).
        artifacts: Every file that will be measured (quantize, export, sparse).
        sparse: What was decided about each layer of the sparse model, empty without zeros (sparse).
        pruned: Predicted cost of the pruned module, zeros counted (recover).
        timings: Raw timings (measure).
        rows: Report rows (measure).
        certificate: The budget of time, judged on the final artifact (measure).
        remarks: What the user should know, in the order it came up.
        facts: Numbers for the report's settings: epochs run, calibration samples, ...
    """

    recipe: Recipe
    folder: BuildFolder
    command: str
    given: Given
    progress: Progress
    say: Callable[[str], None] = lambda line: None
    name: str = ""
    source: str = ""
    model: nn.Module | ExportedProgram | None = None
    sha256: str = ""
    example_inputs: Inputs = ()
    data: Data | None = None
    tasks: tuple[OutputTask, ...] = ()
    metric: OwnMetric | None = None
    graph: Graph | None = None
    scores: dict[str, Tensor] | None = None
    criterion: str = ""
    plan: Plan | None = None
    found: SearchResult | None = None
    learned: dict[str, Tensor] = field(default_factory=dict)
    assigned: dict[str, Assigned] = field(default_factory=dict)
    module: nn.Module | None = None
    checks: tuple[Check, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    sparse: dict[str, Any] = field(default_factory=dict)
    pruned: Cost | None = None
    timings: tuple[Timing, ...] = ()
    rows: tuple[Row, ...] = ()
    certificate: Certificate | None = None
    remarks: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: tuple[tuple[str, float], ...] = ()

    # What later stages read has been given by earlier ones; these say so to the type checker and the reader.

    @property
    def traced(self) -> Graph:
        """The graph, once there is one."""
        assert self.graph is not None, "stage 'trace' has not run"
        return self.graph

    @property
    def planned(self) -> Plan:
        """The plan, once there is one."""
        assert self.plan is not None, "stage 'allocate' has not run"
        return self.plan

    @property
    def pattern(self) -> str:
        """What the pruned artifacts are pruned by: "channel", "2:4", "channel + 2:4", "channel + given"."""
        given = self.facts.get("sparse", {}).get("pattern") == GIVEN
        return " + ".join((*self.recipe.prune.patterns, *((GIVEN,) if given else ())))

    @property
    def compiled(self) -> nn.Module:
        """The pruned module, once there is one."""
        assert self.module is not None, "stage 'remove' has not run"
        return self.module


class Stage(ABC):
    """One step of a build.

    Attributes:
        name: A verb, shown to the user.
        saves: Files that let a resumed build skip this stage, relative to the build folder; empty for a stage
            that is always run again.
    """

    name: ClassVar[str]
    saves: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def run(self, build: Build) -> Build:
        """Do the work and return the build with its result."""

    def restore(self, build: Build) -> Build:
        """Return the build with the result that `run` saved earlier."""
        return self.run(build)

    def document(self, build: Build) -> str | None:
        """One line for the user about what this stage found, None where there was nothing to do."""
        return ""


def stage_file(name: str) -> str:
    """Resume state lives under stages/."""
    return str(Path("stages") / name)
