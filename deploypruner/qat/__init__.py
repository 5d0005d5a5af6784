"""Quantization-aware training of the very graph that was written: a QDQ file run in torch, trained, written back."""

from __future__ import annotations

from deploypruner.qat.executed import left_out
from deploypruner.qat.finetune import QatOutcome, train_quantized
from deploypruner.qat.module import QdqModule

__all__ = ["QatOutcome", "QdqModule", "left_out", "train_quantized"]
