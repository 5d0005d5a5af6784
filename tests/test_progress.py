from __future__ import annotations

import io

import pytest

from deploypruner.progress import BarProgress, LineProgress, progress_for
from deploypruner.train.finetune import finetune
from tests.recover_models import QUICK, Images, net


def test_a_log_gets_one_plain_line_an_epoch() -> None:
    stream = io.StringIO()
    finetune(net(), None, Images(), QUICK, progress=LineProgress(stream), validate=lambda module: 97.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("recover: epoch 2 of 3, loss ")
    assert lines[1].endswith(", validation 97.50")
    assert stream.getvalue().isprintable() is False  # only because of the line ends
    assert all(line.isprintable() for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_everything_else_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(progress_for(Terminal()), BarProgress)
    assert isinstance(progress_for(io.StringIO()), LineProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress_for(Terminal()), LineProgress)


@pytest.mark.parametrize("plain", [True, False])
def test_the_bar_reaches_its_end_and_has_no_colour_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    bar = BarProgress(terminal)
    bar.start(2, "recover")
    bar.advance(1, "epoch 1 of 2")
    bar.advance(1, "[bold]epoch 2")
    bar.close()
    shown = terminal.getvalue()
    assert "2/2" in shown
    assert "[bold]epoch 2" in shown
    colours = [code for code in shown.split("\x1b[")[1:] if "m" in code and code.split("m")[0].startswith("3")]
    assert bool(colours) is not plain
