"""Finished parts of a search on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deploypruner.atomic import replacing
from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, raw_bytes, tensors
from deploypruner.losses import Labels, label_parts
from deploypruner.reading import read_json
from deploypruner.sources.soundness import fingerprint


class Saved:
    """Entries of a JSON file, all found under the same circumstances.

    A file of other circumstances, or a damaged one, is begun anew.

    Args:
        path: Of the file; None to forget everything.
        identity: Hash of everything that the entries depend on beside their keys.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity
        self.entries: dict[str, Any] = {} if path is None else _read(path, identity)

    def add(self, key: str, entry: Any) -> None:
        """Remember an entry; a reader finds either the old file or the new one, never a part.

        Raises:
            InputError: The file cannot be written.
        """
        if self.path is None:
            return
        self.entries[key] = entry
        with replacing(self.path) as temporary:
            document = {"identity": self.identity, "entries": self.entries}
            temporary.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def identity_of(module: nn.Module, *others: object) -> str:
    """Hash of a module's weights, of this version of torch, and of whatever else is told apart by its `repr`."""
    return hashlib.sha256(repr((torch.__version__, fingerprint(module), *others)).encode()).hexdigest()


def batch_hash(inputs: Inputs, labels: Labels) -> str:
    """Of one batch of samples."""
    digest = hashlib.sha256()
    for tensor in [*tensors(inputs), *label_parts(labels)]:
        digest.update(f"{tensor.dtype} {list(tensor.shape)} {labels is None}".encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def batches_hash(batches: Iterable[tuple[Inputs, Labels]]) -> str:
    """Of several, in their order."""
    return hashlib.sha256(" ".join(batch_hash(tuple(x), y) for x, y in batches).encode()).hexdigest()


def _read(path: Path, identity: str) -> dict[str, Any]:
    try:
        document: Any = read_json(path, what="build", hint="it is measured again")
    except InputError:
        return {}
    if not isinstance(document, dict) or document.get("identity") != identity:
        return {}
    entries = document.get("entries")
    return entries if isinstance(entries, dict) else {}
