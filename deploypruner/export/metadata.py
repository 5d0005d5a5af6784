"""What a file says of itself: preprocessing, classes, where it comes from, what wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

PREFIX = "deploypruner."


def label_onnx(path: Path, entries: Mapping[str, str]) -> None:
    """Add entries to the metadata_props of an ONNX file; those it has stay.

    Nothing is read: the parts of a protobuf message may follow each other in a file, and are one message to its
    readers.

    Args:
        path: An ONNX file.
        entries: Name, without our prefix -> value.
    """
    added = onnx.ModelProto()
    onnx.helper.set_model_props(added, {f"{PREFIX}{name}": value for name, value in entries.items()})
    with path.open("ab") as file:
        file.write(added.SerializeToString())


def read_metadata(path: Path) -> dict[str, str]:
    """The entries of ours in an ONNX file, without our prefix."""
    model = onnx.load(path, load_external_data=False)
    return {
        entry.key.removeprefix(PREFIX): entry.value for entry in model.metadata_props if entry.key.startswith(PREFIX)
    }
