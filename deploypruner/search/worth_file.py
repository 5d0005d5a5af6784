"""Measured batches on disk, so that an interrupted measurement goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, tensors
from deploypruner.reading import read_json
from deploypruner.sources.soundness import fingerprint

if TYPE_CHECKING:
    from deploypruner.graph import Keep
    from deploypruner.search.measured import Kind

_FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """All cuts on one batch.

    Args:
        kind: See `MeasuredWorth`.
        samples: In the batch.
        seconds: It took.
        moments: Id of the cut -> sum and sum of squares of the changes of its samples' losses.
    """

    kind: Kind
    samples: int
    seconds: float
    moments: Mapping[str, tuple[float, float]]


@dataclass
class WorthFile:
    """What was measured already of the same weights, cuts and numbers.

    A file of others, or a damaged one, is begun anew.

    Args:
        path: Of the JSON file; None for no file.
        identity: Hash of everything but the samples.
        batches: Hash of a batch -> what was measured on it.
    """

    path: Path | None
    identity: str
    batches: dict[str, Measured] = field(default_factory=dict)

    @staticmethod
    def of(path: Path | None, module: nn.Module, cuts: Mapping[str, Keep], how: str) -> WorthFile:
        """The file's content, where it belongs to these cuts of this module.

        Args:
            path: Of the JSON file; None for no file.
            module: The dense one.
            cuts: Id -> what each leaves.
            how: Everything else that the numbers depend on.
        """
        if path is None:
            return WorthFile(None, "")
        digest = hashlib.sha256(f"{_FORMAT} {how} torch {torch.__version__} {fingerprint(module)}".encode())
        for name, keep in cuts.items():
            digest.update(json.dumps([name, {key: kept.tolist() for key, kept in keep.items()}]).encode())
        return WorthFile(path, digest.hexdigest(), _read(path, digest.hexdigest()))

    def find(self, inputs: Inputs, labels: Tensor | None) -> Measured | None:
        """What was measured on this batch."""
        return self.batches.get(_hash(inputs, labels)) if self.batches else None

    def add(self, inputs: Inputs, labels: Tensor | None, measured: Measured) -> None:
        """Remember a batch; a reader finds either the old file or the new one, never a part."""
        if self.path is None:
            return
        self.batches[_hash(inputs, labels)] = measured
        document = {"identity": self.identity, "batches": {key: asdict(m) for key, m in self.batches.items()}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(document, file, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path, identity: str) -> dict[str, Measured]:
    try:
        document: Any = read_json(path, what="build", hint="it is measured again")
        if document["identity"] != identity:
            return {}
        return {key: _measured(saved) for key, saved in document["batches"].items()}
    except (InputError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _measured(saved: Mapping[str, Any]) -> Measured:
    moments = {name: (float(total), float(squares)) for name, (total, squares) in saved["moments"].items()}
    return Measured(saved["kind"], saved["samples"], saved["seconds"], moments)


def _hash(inputs: Inputs, labels: Tensor | None) -> str:
    digest = hashlib.sha256()
    for tensor in [*tensors(inputs), *([] if labels is None else [labels])]:
        digest.update(f"{tensor.dtype} {list(tensor.shape)} {labels is None}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
