"""What an inference takes beside its operations: entering the runtime, and handing each operation over.

Counters time an operation without what lies between two of them, and their own work comes on top; the whole is timed
without counters. Were the difference spread over the operations alone, as a factor, a network that loses half of its
blocks would be promised half of a cost that does not shrink with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from deploypruner.latency.nodes import Node
from deploypruner.latency.probes import Profile
from deploypruner.runtime import NodeTime

KEY = "overhead"
# Times two numbers for operations are fitted to: fewer profiles than this say nothing about them.
_FEWEST = 4
# The cost of a call is at most this share of the quickest network, whatever disturbed timings say.
_LARGEST = 0.3
_ROUNDS = 10


@dataclass(frozen=True)
class Overhead:
    """A network takes `call + sum of (factor * counted + each)` over its operations.

    Args:
        call_ns: Of an inference.
        each_ns: Of every operation.
        factor: Of what the counters say.
    """

    call_ns: float = 0.0
    each_ns: float = 0.0
    factor: float = 1.0

    def shared_out(self, profile: Profile, ms: float) -> tuple[NodeTime, ...]:
        """The operations of a profile whose network takes `ms`: with the call their times add up to it."""
        ns = np.array([self.factor * node.ns + self.each_ns for node in profile.nodes])
        ns *= max(ms * 1e6 - self.call_ns, ms * 1e6 * (1 - _LARGEST)) / ns.sum()
        return tuple(
            NodeTime(node.name, node.kind, node.shapes, node.precisions, round(float(one), 1))
            for node, one in zip(profile.nodes, ns, strict=True)
        )


NODE = Node(name="(each inference)", kind="Overhead", key=KEY, sizes=(), places=(), presence=1.0)


def find_overhead(profiles: Sequence[Profile], ms: Sequence[float]) -> Overhead:
    """Fit the three numbers to whole networks; by relative error, disturbed networks counting little.

    Args:
        profiles: Of different networks.
        ms: What each takes without counters.
    """
    if len(profiles) < _FEWEST:
        return Overhead()
    whole = np.array(ms) * 1e6
    rows = np.array([[1.0, len(p.nodes), sum(node.ns for node in p.nodes)] for p in profiles]) / whole[:, None]
    weight = np.ones(len(rows))
    for _ in range(_ROUNDS):
        found = nnls(rows * weight[:, None], weight)[0]
        missed = np.abs(rows @ found - 1)
        typical = max(float(np.median(missed)), 0.003)
        weight = 1 / np.sqrt(np.maximum(1.0, missed / typical))
    if not found[2]:
        return Overhead()
    return Overhead(min(float(found[0]), _LARGEST * float(whole.min())), float(found[1]), float(found[2]))
