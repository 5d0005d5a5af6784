"""What somebody who waits sees: a live line on a terminal, few lines in a pipe."""

from __future__ import annotations

import io
import time

import pytest

from deploypruner.errors import InputError
from deploypruner.logbook import Logbook
from deploypruner.progress import Console, SilentProgress, folded, progress_for, redraws, shown
from deploypruner.train.finetune import finetune
from tests.recover_models import QUICK, Images, net


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def still(clock: Clock, *, live: bool = False, **about: object) -> tuple[Console, io.StringIO]:
    """A console that looks when it is told to, and what it wrote."""
    stream = Terminal() if live else io.StringIO()
    console = Console(stream, live=live, clock=clock, **about)
    console._draw = lambda: None
    return console, stream


def test_the_line_says_stage_job_steps_time_gone_and_time_left(clock):
    """A third of 90 steps took 15 s, so 30 s are left."""
    console, _ = still(clock)
    assert console.line(clock.now) == "starting: 0:00"
    console.stage(6, 15, "recover")
    clock.now += 61
    assert console.line(clock.now) == "stage 6 of 15, recover: 1:01"
    console.start(90, "recover")
    console.advance(30, "epoch 1 of 3, loss 0.31")
    clock.now += 15
    assert console.line(clock.now) == "stage 6 of 15, recover: 30/90, 0:15, 0:30 left; epoch 1 of 3, loss 0.31"
    console.start(4, "evaluate")
    assert console.line(clock.now) == "stage 6 of 15, recover: evaluate 0/4, 0:00"
    console.close()
    clock.now += 3600
    assert console.line(clock.now) == "stage 6 of 15, recover: 1:01:16"
    console.doing("starting workers")
    assert console.line(clock.now) == "starting workers: 0:00"


def test_a_pipe_gets_a_line_every_30_seconds_and_no_milestones(clock):
    console, stream = still(clock)
    console.stage(6, 15, "recover")
    console.start(120, "recover")
    for second in range(120):
        clock.now += 1
        console.advance(1, f"epoch {second}")
        console.look()
    console.say("recover     60.0 s  done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "stage 6 of 15, recover: 30/120, 0:30, 1:30 left; epoch 29"
    assert all(line.isprintable() for line in lines)


def test_a_pipe_is_not_told_where_the_work_is_while_its_own_lines_come(clock):
    console, stream = still(clock)
    console.stage(1, 2, "load")
    for _ in range(10):
        clock.now += 29
        console.say("a line")
        console.look()
    assert stream.getvalue() == "a line\n" * 10


def test_verbose_prints_milestones_and_details_and_quiet_nothing_and_the_log_has_all(clock, tmp_path):
    outcomes = {}
    for name in ("plain", "verbose", "quiet"):
        log = Logbook(lambda: "noon")
        log.keep_in(tmp_path / name)
        console, stream = still(clock, verbose=name == "verbose", quiet=name == "quiet", log=log)
        console.start(2, "recover")
        console.advance(1, "epoch 1 of 2")
        console.detail("narrowest widths: 3 ms")
        console.detail("remark: widths of 3 are not multiples of 8")
        console.say("recover  1.0 s")
        log.close()
        outcomes[name] = stream.getvalue().splitlines()
    said = [
        *("recover: epoch 1 of 2", "narrowest widths: 3 ms"),
        *("remark: widths of 3 are not multiples of 8", "recover  1.0 s"),
    ]
    assert outcomes == {"plain": said[2:], "verbose": said, "quiet": []}
    for name in outcomes:
        assert (tmp_path / name).read_text() == "".join(f"noon {line}\n" for line in said)


def test_a_live_line_is_drawn_over_itself_cut_at_the_width_and_gone_in_the_end(clock, monkeypatch):
    console, stream = still(clock, live=True)
    monkeypatch.setattr("deploypruner.progress._columns", lambda stream: 24)
    with console:
        console.stage(1, 15, "load")
        console.look()
        console.say("load 0.1 s")
        console.look()
    drawn = "stage 1 of 15, load: 0"
    assert len(f"/ {drawn}") == 24
    assert stream.getvalue() == (
        f"\r/ {drawn[:21]}\x1b[K" + "\r\x1b[Kload 0.1 s\n" + f"\r- {drawn[:21]}\x1b[K" + "\r\x1b[K"
    )


def test_a_line_longer_than_the_terminal_breaks_between_words_under_its_text(clock, monkeypatch):
    line = "export       4.4 s  model.fp32.onnx 246 kB, model.int8.onnx 78.5 kB"
    assert folded(line, 44) == [line[:43], " " * 20 + "model.int8.onnx 78.5 kB"]
    assert folded(line, len(line) + 1) == [line]
    assert folded("remark: one two three", 18) == ["remark: one two", "        three"]
    path = "/a-folder/with-hyphens/that-is-longer-than-the-terminal"
    assert folded(f"kept in {path}", 20) == ["kept in", f"  {path}"]
    monkeypatch.setattr("deploypruner.progress._columns", lambda stream: 44)
    console, pipe = still(clock)
    console.say(line)
    assert pipe.getvalue() == f"{line}\n"
    console, screen = still(clock, live=True)
    console.say(line)
    assert screen.getvalue().count("\n") == 2


def test_names_cannot_reach_the_terminal(clock):
    console, stream = still(clock, live=True)
    console.start(2, "re\x1b[31mcover")
    console.advance(1, "\x1b]0;title\x07")
    console.look()
    assert r"re\x1b[31mcover: 1/2" in stream.getvalue()
    assert stream.getvalue().count("\x1b") == 1


def test_a_live_line_moves_by_itself_while_nothing_is_said():
    stream = Terminal()
    with Console(stream, live=True) as console:
        console.stage(3, 15, "score")
        while stream.getvalue().count("score") < 3:
            time.sleep(0.01)
    assert stream.getvalue().endswith("\r\x1b[K")


def test_who_reads_may_be_gone():
    stream = Terminal()
    with Console(stream, live=True) as console:
        console.stage(3, 15, "score")
        stream.close()
        console.start(2, "score")
        console.close()
    assert stream.closed


def test_a_job_without_a_context_ends_with_it():
    stream = io.StringIO()
    console = Console(stream, live=False, verbose=True)
    finetune(net(), None, Images(), QUICK, progress=console, validate=lambda module: 97.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("recover: epoch 2 of 3, loss ")
    assert lines[1].endswith(", validation 97.50")
    assert console._thread is None


def test_what_a_terminal_is(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert redraws(Terminal())
    assert not redraws(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert not redraws(Terminal())
    assert isinstance(progress_for(io.StringIO()), Console)


def test_python_shows_a_line_unless_it_is_told_not_to(capsys):
    said: list[str] = []
    with shown(True, said.append) as (listener, say):
        assert isinstance(listener, Console)
        say("load")
    with shown(False, said.append) as (listener, say):
        assert isinstance(listener, SilentProgress)
    own = SilentProgress()
    with shown(own, said.append) as (listener, say):
        say("trace")
    assert listener is own
    assert said == ["load", "trace"]
    assert capsys.readouterr().err == ""


def test_a_log_is_added_to_begins_with_the_first_line_and_is_never_something_else(tmp_path):
    log, file = Logbook(), tmp_path / "log.txt"
    log("one\x1b[31m\ntwo")
    log.keep_in(file)
    log.keep_in(file)
    log("three")
    log.close()
    log("after its end")
    again = Logbook()
    again.keep_in(file)
    again("four")
    again.close()
    lines = file.read_text().splitlines()
    assert [line[20:] for line in lines] == [r"one\x1b[31m", "two", "three", "four"]
    assert all(line[:19].replace("-", "").replace(":", "").replace(" ", "").isdigit() for line in lines)
    (tmp_path / "model.pt2").write_text("weights")
    with pytest.raises(InputError, match=r"model\.pt2' is there and is no log"):
        log.keep_in(tmp_path / "model.pt2")
    with pytest.raises(InputError, match="choose another --log"):
        log.keep_in(tmp_path / "missing" / "log.txt")
    assert (tmp_path / "model.pt2").read_text() == "weights"


def test_what_ended_the_work_is_in_the_log(clock, tmp_path):
    console, _ = still(clock)

    def fail(error: BaseException) -> None:
        with console:
            console.log.keep_in(tmp_path / "log.txt")
            raise error

    for error in (InputError("no file", hint="give one"), KeyboardInterrupt(), ValueError("surprise")):
        with pytest.raises(type(error)):
            fail(error)
    text = (tmp_path / "log.txt").read_text()
    assert " error: no file\n" in text
    assert " hint: give one\n" in text
    assert " interrupted\n" in text
    assert " Traceback (most recent call last):\n" in text
    assert text.endswith(" ValueError: surprise\n")
