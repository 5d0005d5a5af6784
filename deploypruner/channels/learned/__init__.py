"""Learning which channels stay: the dense model is trained with gates on them until the plan's widths are left.

The widths are chosen before, by `allocate` or the latency solver. What training ends in is a plan with those widths
and other channels, and the weights to remove them from.
"""

from __future__ import annotations

from deploypruner.channels.learned.learned import learned_regime
from deploypruner.channels.learned.regime import ChannelRegime, closed, settled
from deploypruner.channels.learned.run import Learned, learn
from deploypruner.channels.learned.schedules import Shrinking, can_score_while_training, toward_budget, toward_widths
from deploypruner.recipe.learn import LearnSettings

__all__ = [
    "ChannelRegime",
    "LearnSettings",
    "Learned",
    "Shrinking",
    "can_score_while_training",
    "closed",
    "learn",
    "learned_regime",
    "settled",
    "toward_budget",
    "toward_widths",
]
