"""A latency prediction for a model of which some parts are gone for good."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploypruner.graph.labels.atoms import IntArray
from deploypruner.search.choices import Floats, MillisecondsTally, Order, TallyOf


class Remaining:
    """A tally in which what is gone takes no time and cannot come back, whatever a plan says about it.

    So the solver neither gains nor pays by keeping it, and what it finds is meant for what is left.

    Args:
        tally_of: Predicts milliseconds.
        order: Group id -> all its channels, those that stay longest first; a branch has one channel, 0.
        left: Group id -> channels that are left, at least one; branch id -> nothing, of a branch that is gone. What
            it does not name is whole.
    """

    def __init__(self, tally_of: TallyOf, order: Order, left: Mapping[str, IntArray]) -> None:
        self._left = {name: kept for name, kept in left.items() if name in order and len(kept) < len(order[name])}
        self._counts: dict[str, IntArray] = {}
        first = dict(order)
        for name, kept in self._left.items():
            here = np.isin(order[name], kept)
            first[name] = np.concatenate([order[name][here], order[name][~here]])
            self._counts[name] = np.maximum(np.append(0, np.cumsum(here)), min(1, len(kept)))
        self._tally: MillisecondsTally = tally_of(first)
        for name, kept in self._left.items():
            self._tally.keep(name, np.sort(kept))

    @property
    def ms(self) -> float:
        """Of the plan as it is."""
        return self._tally.ms

    def keep(self, group: str, channels: IntArray) -> float:
        """Let one group keep those of these channels that are left; see `choices.Tally`."""
        return self._tally.keep(group, still(channels, self._left.get(group)))

    def sweep(self, group: str, widths: IntArray) -> Floats:
        """Milliseconds with those of the first `width` channels that are left, for each; see `choices.Tally`."""
        counts = self._counts.get(group)
        return self._tally.sweep(group, widths if counts is None else counts[np.asarray(widths, np.int64)])


def still(channels: IntArray, left: IntArray | None) -> IntArray:
    """Those of some channels that are left, at least one where any is; all where `left` is None."""
    if left is None:
        return channels
    found: IntArray = channels[np.isin(channels, left)]
    return found if len(found) else left[:1]
