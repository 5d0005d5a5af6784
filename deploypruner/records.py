"""The frozen records that cross a stage border. Only numpy and the standard library are imported here.

MACs are predicted cost, milliseconds are measured; no record carries speed without its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploypruner.figures import scaled
from deploypruner.quality_records import ACCURACY as ACCURACY
from deploypruner.quality_records import RELATIVE_ERROR as RELATIVE_ERROR
from deploypruner.quality_records import AccuracyChange as AccuracyChange
from deploypruner.quality_records import Metric as Metric
from deploypruner.quality_records import OutputQuality as OutputQuality
from deploypruner.quality_records import Quality as Quality

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["producer", "consumer", "norm", "shift", "other"]
Precision = Literal["fp32", "int8"]
Verdict = Literal["faster", "slower", "indistinguishable"]
GroupKind = Literal["channels", "heads", "head columns", "conv groups", "norm groups", "group columns"]


@dataclass(frozen=True)
class Member:
    """Where one group lives on one axis of one parameter.

    Args:
        parameter: Fully qualified name in the user's model, for example "layer1.0.conv1.weight".
        axis: Axis of that parameter.
        index: `[C, k]` int64; row c lists the k positions on the axis that belong to channel c.
    """

    parameter: str
    axis: int
    index: NDArray[np.int64]

    def __repr__(self) -> str:
        channels, each = self.index.shape
        return f"Member({self.parameter!r}, axis {self.axis}, {channels} channels of {each})"


@dataclass(frozen=True)
class Group:
    """Channels that must be removed together, and everywhere they appear.

    Args:
        id: Stable name, parameter and axis of the first member: "layer1.0.conv1.weight:0"; a second group that
            begins there is "layer1.0.conv1.weight:0#2".
        size: C, the number of interchangeable channels.
        members: Every parameter axis the channels live on.
        macs_per_channel: Predicted multiply-adds (one sample) saved by removing one channel, others kept.
        changes_statistics: True where removing a channel changes a mean or variance taken over channels
            (layer norm, group norm), so that zeroing and removing are not the same function.
        secondary: True where the group shares parameter entries with a larger one (heads with head
            columns, conv groups with their columns); only the larger one is pruned by default.
        kind: What a channel is. Where two groups cut the same axis both ways, the one in contiguous blocks is
            "heads", "conv groups" or "norm groups" (of a group norm), and the one that runs inside every block
            "head columns" or "group columns".
        partners: Ids of the groups it shares parameter entries with; cutting both multiplies.
    """

    id: str
    size: int
    members: tuple[Member, ...]
    macs_per_channel: float
    changes_statistics: bool
    secondary: bool = False
    kind: GroupKind = "channels"
    partners: tuple[str, ...] = ()

    def __repr__(self) -> str:
        members = f"{len(self.members)} member{'' if len(self.members) == 1 else 's'}"
        return f"Group({self.id!r}, {self.size} {self.kind}, {members}, {scaled(self.macs_per_channel)} MACs each)"


@dataclass(frozen=True)
class Branch:
    """A residual branch: in `x + f(x)` everything that makes up `f`. Without it `x` is left.

    Args:
        id: Module that its layers share: "layer1.1", "blocks.0.attn"; with "#2" where another branch has the name.
            Never an id of a group, which has a colon.
        parameters: Names of the parameters and buffers that only it reads.
        groups: Ids of the groups that live inside it; what is kept of them does not matter once it is gone.
        macs: Predicted multiply-adds of one sample that go with it, everything else whole.
        params: Parameter elements that go with it.
        where: Source line and module of the addition, "" when unknown.
    """

    id: str
    parameters: tuple[str, ...]
    groups: tuple[str, ...]
    macs: int
    params: int
    where: str


@dataclass(frozen=True)
class ChannelEvidence:
    """What data says about the channels of a group as wholes; None where the criterion did not ask for it.

    Args:
        activation: `[C]`, mean absolute value of what the channel carries to the layers that read it.
        active: `[C]`, share of those values that are not zero, 0 to 1.
        gate: `[B, C]`, for each of B minibatches the derivative of its mean loss with respect to one gate z = 1 on
            everything through which the channel leaves.
        gate_curvature: `[C]`, the second derivative, averaged over minibatches and probes.
        closing: `[B, C]`, for each minibatch the loss without the channel minus the loss with it.
    """

    activation: Tensor | None = None
    active: Tensor | None = None
    gate: Tensor | None = None
    gate_curvature: Tensor | None = None
    closing: Tensor | None = None


@dataclass(frozen=True)
class MemberView:
    """One group member as a criterion sees it: rows of numbers, one row a channel, no layer types.

    Args:
        name: Parameter the rows come from.
        role: What the layer uses these channels for: its output ("producer"), its input ("consumer"), a
            normalisation's scale ("norm") or its shift ("shift"), or something else ("other").
        weight: `[C, F]` float32, all numbers that belong to each channel.
        gate: `[B, C]` float32; for each of B minibatches the derivative of its mean loss with respect to a
            scalar z = 1 that multiplies the channel where it leaves this member, None where the member is
            not a channel's last producer or gates were not collected.
        slope: `[B, C]` float32; for each minibatch the sum over f of weight[c, f] x its gradient, None if not
            collected.
        slope_squares: `[B, C]` float32; the same sum of squared products.
        curvature: `[C, F]` float32; diagonal of the Hessian of the mean loss, estimated, None if not collected.
        channels: What is known of the group's channels as wholes; the same in all its members.
    """

    name: str
    role: Role
    weight: Tensor
    gate: Tensor | None = None
    slope: Tensor | None = None
    slope_squares: Tensor | None = None
    curvature: Tensor | None = None
    channels: ChannelEvidence = ChannelEvidence()


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed, and why.

    Args:
        parameter: Fully qualified name.
        axis: Axis of the parameter.
        count: How many positions on that axis are frozen.
        reason: In a person's words: "model output".
        where: Source line and module of the operation that froze them, "" when unknown.
    """

    parameter: str
    axis: int
    count: int
    reason: str
    where: str


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one sample.

    Args:
        macs: Multiply-adds of convolutions and linear layers; 1 MAC = one multiply and one add.
        params: Number of parameter elements.
        nonzero: How many of them are not zero.
    """

    macs: int
    params: int
    nonzero: int


Environment = tuple[tuple[str, str], ...]
"""Variables of a process, name and value, beside its own."""


def named_variables(environment: Environment) -> str:
    """ "NAME=VALUE", as before a command; "" for none."""
    return " ".join(f"{name}={value}" for name, value in environment)


@dataclass(frozen=True)
class Setting:
    """How an artifact is executed: what a latency belongs to.

    Args:
        runtime: Registered runtime name.
        precision: "fp32" or "int8".
        threads: Threads of the runtime.
        floats: Weights of layers that stay float all the same, by their names in the model: of int8 alone.
        environment: Variables of the process in which the runtime is fastest.
    """

    runtime: str
    precision: Precision
    threads: int = 1
    floats: tuple[str, ...] = ()
    environment: Environment = ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Setting:
        """Read what `dataclasses.asdict` made and a file may have held."""
        pairs = document.get("environment", ())
        found = {
            "floats": tuple(document.get("floats", ())),
            "environment": tuple((str(a), str(b)) for a, b in pairs),
        }
        return cls(**{**document, **found})

    def __str__(self) -> str:
        mixed = f" with {len(self.floats)} layer{'' if len(self.floats) == 1 else 's'} float" if self.floats else ""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        named = f", {named_variables(self.environment)}" if self.environment else ""
        return f"{self.precision}{mixed} on {self.runtime}, {threads}{named}"


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape (None = dynamic) and numpy dtype name of one model input or output."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Artifact:
    """One exported file that can be loaded by a runtime.

    Args:
        name: Row name shown to the user: "dense fp32", "pruned int8".
        path: File; for OpenVINO IR the .xml.
        format: "onnx", "openvino", "pt2", or that of another exporter.
        precision: "fp32" or "int8" (QDQ).
        pattern: "dense" for the user's model, for the pruned one what it was pruned by: "channel", "channel + 2:4"; a
            pattern says nothing of speed, runtimes execute zeros like any other number.
        cost: Predicted cost, None when the file's origin is unknown.
        runtime: The only one it is for, "" where it is for every one that opens it.
        environment: Variables of the process that runs it, name and value.
        threads: Threads that it alone is timed with, 0 for those of all that it is timed beside.
    """

    name: str
    path: Path
    format: str
    precision: Precision
    pattern: str = "dense"
    cost: Cost | None = None
    runtime: str = ""
    environment: Environment = ()
    threads: int = 0


@dataclass(frozen=True)
class Timing:
    """Raw latency samples of one artifact on one runtime, batch 1.

    Args:
        artifact: What was timed.
        runtime: Registered runtime name.
        threads: Threads the runtime was given.
        samples_ns: `[rounds, per_round]` int64 nanoseconds; round r of every artifact was taken
            within the same interleaved pass, so rows of two timings are paired.
        load_s: Seconds to load and compile the artifact.
        warmup: Number of calls thrown away before the first round.
        peak_rss_bytes: Peak resident memory of the worker process.
        settings: What the runtime was told, for example {"INFERENCE_PRECISION_HINT": "f32"}.
    """

    artifact: Artifact
    runtime: str
    threads: int
    samples_ns: NDArray[np.int64]
    load_s: float
    warmup: int
    peak_rss_bytes: int
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A paired latency comparison.

    Args:
        against: Name of the baseline row.
        ratio: Speed-up, baseline time / this time; 2.0 means twice as fast.
        ratio_ci: 95 % bootstrap interval of `ratio`.
        verdict: faster or slower only where the interval lies beyond the noise floor.
    """

    against: str
    ratio: float
    ratio_ci: tuple[float, float]
    verdict: Verdict


@dataclass(frozen=True)
class SampleHistogram:
    """How raw latencies are spread.

    Args:
        low_ms: Where the first bin begins: the quickest sample.
        high_ms: Where the last bin ends; it holds all that took longer, too.
        counts: Samples in bins of equal width.
    """

    low_ms: float
    high_ms: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One line of the report: an artifact on a runtime, its speed and its quality side by side.

    `ratio`, `ratio_ci` and `verdict` are against the dense fp32 model on the same runtime and threads;
    `same_precision` is against the dense model of the same precision there. p95 and p99 are None where
    fewer than five samples lie beyond them. `accuracy` is counted in `metric`, `outputs` has each output by itself;
    `evaluated` is the number of inputs behind accuracy and agreement, and their intervals and `change`, the paired
    comparison with the dense fp32 model, are None where they are no shares of these inputs (see `Quality`). `file` is
    the artifact's path, in a build within its folder; `histogram` is None where no samples were kept; `environment`:
    variables of the process that ran it.
    """

    name: str
    format: str
    runtime: str
    precision: Precision
    pattern: str
    threads: int
    accuracy: float | None
    agreement: float | None
    agreement_kind: str
    median_ms: float
    p95_ms: float | None
    p99_ms: float | None
    samples: int
    ratio: float
    ratio_ci: tuple[float, float]
    verdict: Verdict
    same_precision: Comparison | None
    macs: int | None
    params: int | None
    nonzero: int | None
    bytes: int
    peak_rss_bytes: int
    metric: Metric = ACCURACY
    outputs: tuple[OutputQuality, ...] = ()
    evaluated: int = 0
    agreement_ci: tuple[float, float] | None = None
    accuracy_ci: tuple[float, float] | None = None
    change: AccuracyChange | None = None
    file: str = ""
    histogram: SampleHistogram | None = None
    environment: Environment = ()


@dataclass(frozen=True)
class Check:
    """One verification line: two forms of a model compared on the same inputs.

    Args:
        name: What was compared: "masked = removed (float64)".
        max_abs_diff: Largest absolute difference over all outputs.
        tolerance: Largest difference allowed, in the same unit.
        passed: max_abs_diff <= tolerance (False for NaN).
        detail: One short remark, "" when there is none.
    """

    name: str
    max_abs_diff: float
    tolerance: float
    passed: bool
    detail: str = ""
