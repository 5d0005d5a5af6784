"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# A lack costs speed or trust and nothing stops; with something broken, commands fail.
State = Literal["fine", "lack", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        topic: One word or two: "memory".
        says: What was found, in a sentence.
        state: Is it as it should be?
        hint: What to do about it; every lack and everything broken has one.
        facts: The numbers behind the sentence, JSON-able.
    """

    topic: str
    says: str
    state: State = "fine"
    hint: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
