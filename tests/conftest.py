"""What every test process needs."""

from __future__ import annotations

import signal

import pytest

from deploypruner.graph.labels.tracing import Tracing
from tests import builds

# A shell that starts pytest in the background makes it ignore SIGINT, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A rule that fails freezes what it touches; here it must not go unseen.
Tracing.strict = True


@pytest.fixture(autouse=True)
def shared_build_first(request: pytest.FixtureRequest) -> None:
    """Tests run in any order: the build that a file shares is made before a test of it patches anything."""
    if {"finished", "copy_of_finished"} & vars(request.module).keys():
        builds.finished()
