"""Predicted milliseconds of any plan of a traced model: layers timed inside probe networks on the real runtime."""

from __future__ import annotations

from deploypruner.latency.build import build_latency_model, build_latency_models
from deploypruner.latency.model import LatencyModel, LayerTime
from deploypruner.latency.probes import Profile, profile, write_candidate
from deploypruner.latency.quality import LatencyQuality
from deploypruner.latency.tally import LatencyTally

__all__ = [
    "LatencyModel",
    "LatencyQuality",
    "LatencyTally",
    "LayerTime",
    "Profile",
    "build_latency_model",
    "build_latency_models",
    "profile",
    "write_candidate",
]
