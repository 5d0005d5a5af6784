"""State of a fine-tuning run on disk, written whole or not at all, and free of pickled code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from deploypruner.recover.regime import Regime


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch.

    Args:
        epoch: Counted from 1.
        loss: Mean training loss over the epoch's batches.
        lr: Learning rate of its last step.
        score: What the validation function returned, None without one.
    """

    epoch: int
    loss: float
    lr: float
    score: float | None


def fingerprint(settings: str, student: nn.Module, teacher: nn.Module | None, data: Sequence[object]) -> str:
    """Hash of everything a run's result depends on, taken before the first step.

    Args:
        settings: Text of the settings.
        student: Model with its initial weights.
        teacher: Dense model, or None.
        data: What is known about the data set.
    """
    digest = hashlib.sha256(f"{settings} {list(data)} torch {torch.__version__}".encode())
    for module in (student, teacher):
        for name, tensor in ({} if module is None else module.state_dict()).items():
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(
    path: Path,
    fingerprint: str,
    student: nn.Module,
    optimizer: torch.optim.SGD,
    *,
    epochs: Sequence[EpochRecord],
    regime: Regime,
) -> None:
    """Replace the file at `path`; a reader finds either the old state or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    tensors |= {f"momentum.{i}": buffer for i, buffer in enumerate(_momenta(optimizer)) if buffer is not None}
    tensors |= {f"regime.{name}": tensor for name, tensor in regime.state().items()}
    # Clones: safetensors refuses tied weights, which share memory.
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    about = {"fingerprint": fingerprint, "epochs": json.dumps([asdict(epoch) for epoch in epochs])}
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(to_bytes(apart, metadata=about))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(
    path: Path, fingerprint: str, student: nn.Module, optimizer: torch.optim.SGD, *, regime: Regime
) -> list[EpochRecord]:
    """Put the saved state into `student`, `optimizer` and `regime`, and return the finished epochs.

    Returns an empty list and changes nothing where there is no file, where it is damaged, or where it
    belongs to another run.
    """
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != fingerprint:
                return []
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError:
        return []
    student.load_state_dict(_part(tensors, "student."))
    regime.load_state(_part(tensors, "regime."))
    for i, parameter in enumerate(_parameters(optimizer)):
        buffer = tensors.get(f"momentum.{i}")
        if buffer is not None:
            optimizer.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)
    return [EpochRecord(**epoch) for epoch in json.loads(about["epochs"])]


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _parameters(optimizer: torch.optim.SGD) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _momenta(optimizer: torch.optim.SGD) -> list[torch.Tensor | None]:
    return [optimizer.state[p].get("momentum_buffer") for p in _parameters(optimizer)]
