"""Whether a file holds operations of our domain, told from its bytes: a timing worker loads no onnx for that."""

from __future__ import annotations

import mmap
from pathlib import Path

DOMAIN = "deploypruner"
# In protobuf the domain of an ONNX node is field 7, a string: tag, length, characters. An IR names it as a version.
_MARKS = {
    ".onnx": bytes([0x3A, len(DOMAIN)]) + DOMAIN.encode(),
    ".xml": f'version="{DOMAIN}"'.encode(),
}


def uses_sparse_operations(path: Path) -> bool:
    """Does the model at `path` need our library? False for a missing file and for formats that cannot hold them."""
    mark = _MARKS.get(path.suffix)
    if mark is None or not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(mark) >= 0
