"""Channels of an fp32 graph that are scaled without a change of what it computes.

Where x becomes x / d and the weights that read it w d, a layer's output stays what it was. Between the layer that
makes a channel and those that read it every operator has to be positively homogeneous, f(x / d) = f(x) / d: relu,
poolings, additions of channels that share one d (Nagel et al. 2019, arXiv:1906.04721, section 4.1). Beyond the pairs
of layers of the paper we follow channels one by one through residual streams, depthwise convolutions,
concatenations, splits and flattening.

A clip to [0, B] is no such operator. A channel that stays below B / d may still be scaled, as the clip then does
nothing to it; `Scalable.bounds` says where that holds and `equalize` how much room is left for unseen data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deploypruner.onnx_graph import Array, constant

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scaled:
    """A stored tensor that changes with the channels of a computed one.

    Args:
        stored: Its name.
        tensor: The computed one.
        axis: Of `stored`, that the channels lie on.
        reads: Is it multiplied with the channels, and so by d? Else it makes them, and is divided by d.
        groups: Of a convolution that reads channels; the channels then lie on axis 0, too.
    """

    stored: str
    tensor: str
    axis: int
    reads: bool
    groups: int = 1


@dataclass
class Scalable:
    """Channels of tensors, and what they have in common.

    Args:
        labels: Name of a tensor -> label of each channel; channels with one label have one factor.
        axes: Name of a tensor -> axis of its channels.
        free: Whether a label may have another factor than 1 [labels].
        bounds: What a channel may not exceed, as a clip stands on its way [labels]; infinite for most.
        changes: What is stored and changes with a factor.
        groups: Of labels that some tensor holds together, a number [labels]; -1 for those that are not free.
    """

    labels: dict[str, Labels]
    axes: dict[str, int]
    free: NDArray[np.bool_]
    bounds: Array
    changes: list[Scaled]
    groups: Labels

    @property
    def sets(self) -> int:
        """How many groups of channels can be scaled."""
        return len(set(self.groups[self.groups >= 0].tolist()))

    def of(self, tensor: str, factors: Array) -> Array:
        """Factors of a tensor's channels [C] from those of all labels."""
        return factors[self.labels[tensor]]

    def spread(self, change: Scaled, shape: tuple[int, ...], factors: Array) -> Array:
        """What to multiply the stored tensor of this shape with."""
        d = self.of(change.tensor, factors)
        if not change.reads:
            d = 1 / d
        if change.groups > 1:  # [G O/G, I/G, ...], rows of group g read channels g I/G and on
            per_group = np.repeat(d.reshape(change.groups, -1), shape[0] // change.groups, axis=0)
            return per_group.reshape(shape[0], shape[1], *(1,) * (len(shape) - 2))
        return d.reshape([-1 if axis == change.axis else 1 for axis in range(len(shape))])


def rescale(graph: ir.Graph, found: Scalable, factors: Array) -> None:
    """Divide every channel by its factor in place: what is stored changes, in float32; zeros stay zeros."""
    factors = np.where(found.free, factors, 1.0)
    wholes: dict[str, Array] = {}
    for change in found.changes:
        value = graph.initializers[change.stored]
        values = wholes.setdefault(change.stored, np.asarray(constant(value), np.float64))
        wholes[change.stored] = values * found.spread(change, values.shape, factors)
    for name, values in wholes.items():
        graph.initializers[name].const_value = ir.tensor(values.astype(np.float32), name=name)
