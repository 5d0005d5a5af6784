"""What every test process needs."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deploypruner.graph.labels.tracing import Tracing
from tests import builds
from tests.sshd import Sshd, none_left, remember, running_sshd

# A shell that starts pytest in the background makes it ignore SIGINT, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A rule that fails freezes what it touches; here it must not go unseen.
Tracing.strict = True


@pytest.fixture(autouse=True)
def shared_build_first(request: pytest.FixtureRequest) -> None:
    """Tests run in any order: the build that a file shares is made before a test of it patches anything."""
    if {"finished", "copy_of_finished"} & vars(request.module).keys():
        builds.finished()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def device(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """The server, known as `pi` and as it is at first; nothing of ours runs there afterwards."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.targets(server.described())
    remember(server.folder, server.port, "host")
    yield server
    server.cut()  # the connection that is kept for a minute, too
    assert none_left(server)
