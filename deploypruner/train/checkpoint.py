"""State of a fine-tuning run on disk, written whole or not at all, and free of pickled code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from deploypruner.atomic import replacing
from deploypruner.graph.inputs import raw_bytes
from deploypruner.train.regime import under


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


@dataclass(frozen=True)
class Identity:
    """Which run a checkpoint belongs to.

    Args:
        fingerprint: Hash of everything a run's result depends on, but for the learning rate.
        lr: The highest learning rate.
    """

    fingerprint: str
    lr: float


@dataclass(frozen=True)
class State:
    """A run after a finished epoch.

    Args:
        epochs: The finished ones.
        tensors: Name -> tensor, everything the run changes; `part` picks by prefix.
        numbers: The same for what is no tensor; JSON.
    """

    epochs: Sequence[EpochRecord]
    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return under(self.tensors, prefix)


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
            digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def save(path: Path, identity: Identity, state: State, *, stopped: bool = False) -> None:
    """Replace the file at `path`; a reader finds either the old state or the new one, never a part.

    Args:
        path: The file.
        identity: Of the run.
        state: After its last finished epoch.
        stopped: True where the epoch after it failed, so that a run with a lower rate may go on from here.

    Raises:
        InputError: The file cannot be written.
    """
    # Clones: safetensors refuses tied weights, which share memory.
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.tensors.items()}
    about = {
        "fingerprint": identity.fingerprint,
        "lr": repr(identity.lr),
        "stopped": json.dumps(stopped),
        "epochs": json.dumps([asdict(epoch) for epoch in state.epochs]),
        "numbers": json.dumps(dict(state.numbers)),
    }
    about["sha256"] = _checksum(about, apart)
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(apart, metadata=about))


def load(path: Path, identity: Identity) -> State | None:
    """The saved state, None where there is no file, where it is damaged, or where it belongs to another run.

    The state of a run that stopped at numbers which are not finite belongs to a run with a lower rate, too.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != identity.fingerprint or not _rate_fits(about, identity.lr):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, ValueError):
        return None
    if about.pop("sha256", "") != _checksum(about, tensors):
        return None
    epochs = [EpochRecord(**epoch) for epoch in json.loads(about["epochs"])]
    return State(epochs, tensors, json.loads(about["numbers"]))


def _checksum(about: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of everything in the file: safetensors finds a cut file, but not a changed bit."""
    digest = hashlib.sha256(json.dumps(sorted(about.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def mark_stopped(path: Path, identity: Identity) -> None:
    """Remember that the epoch after the saved ones failed; nothing where no epoch of this run is saved."""
    state = load(path, identity)
    if state is not None:
        save(path, identity, state, stopped=True)


def _rate_fits(about: Mapping[str, str], lr: float) -> bool:
    saved, stopped = float(about.get("lr", "nan")), json.loads(about.get("stopped", "false"))
    return lr == saved or (stopped and lr < saved)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer remembers of each parameter: tensors, and numbers for JSON, both as "INDEX.KEY"."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, remembered in optimizer.state_dict()["state"].items():
        for key, value in remembered.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{key}"] = value
    return tensors, numbers


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]
) -> None:
    """Put back what `optimizer_state` gave."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **numbers}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
