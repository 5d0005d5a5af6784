"""How an answer of ours is told from what a login shell prints before it."""

from __future__ import annotations

import json
from typing import Any

# Goes up when what agents are told, or say, changes.
FORMAT = 2
MARK = b"deploypruner-device "


def hello(found: dict[str, Any]) -> bytes:
    """A first line."""
    return MARK + json.dumps(found).encode() + b"\n"


def first_words(line: bytes) -> dict[str, Any] | None:
    """What a first line says; None for a line of somebody else's."""
    # A banner may end without a newline.
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
