"""Who else used the machine while it was measuring, and what follows from that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO
from unittest import mock

import numpy as np
import psutil
import pytest

from deploypruner.device import counters
from deploypruner.device.connection import Device
from deploypruner.device.cores import core_times
from deploypruner.device.counters import Reading, read_counters
from deploypruner.device.transports import local
from deploypruner.device.transports.local import LocalTransport
from deploypruner.measure import Measured, find_warnings, time_artifacts
from deploypruner.measure.interference import Conditions, Watch, Window
from deploypruner.recipe.budget import Budget
from deploypruner.records import Artifact, Setting, Timing
from deploypruner.search.certify import certify
from deploypruner.search.goal import Goal
from tests.timed import save_conv

QUIET = Window(seconds=1.0, others_cores=0.02, stolen=0.0, waited=0.001, mhz=2500.0)
GUEST = Window(seconds=1.0, others_cores=1.9, stolen=0.0, waited=0.45, mhz=2500.0)
STOLEN = Window(seconds=1.0, others_cores=0.0, stolen=0.3, waited=0.0, mhz=None)
MACHINE = {"busy_cores": 0.0, "cores": 2}


def seen(*windows: Window, cores: int = 2, threads: int = 1) -> Conditions:
    return Conditions(windows, cores, threads)


def timing(name: str = "m", fed: str = "1x3 float32") -> Timing:
    samples = np.full((10, 20), 1_000_000, dtype=np.int64)
    return Timing(Artifact(name, Path(name), "onnx", "fp32"), "openvino", 1, samples, 0.0, 0, 0, {"fed x": fed})


def measured(conditions: Conditions, floor: float = 0.01) -> Measured:
    return Measured((timing(),), timing(), floor, True, conditions=conditions)


def test_windows_are_differences_of_counters_by_hand() -> None:
    # Two seconds: the machine worked 3.4 core seconds, 1.6 of them ours, and 0.2 were stolen from two threads.
    readings = iter([Reading(10.0, 1.0, 5.0, 2000.0), Reading(13.4, 1.2, 6.6, 2100.0)])
    clock = iter([0.0, 0.1, 2.0])
    watch = Watch(cores=4, threads=2, read=lambda: next(readings), clock=lambda: next(clock))
    watch.look()  # too early for a window
    for nanoseconds in (100_000_000, None, 300_000_000):
        watch.waited(nanoseconds)
    watch.look()
    (window,) = watch.conditions().windows
    assert window.seconds == 2.0
    assert window.others_cores == pytest.approx(0.9)
    assert window.stolen == pytest.approx(0.05)
    assert window.waited == pytest.approx(0.1)
    assert window.mhz == 2100.0


def test_a_clock_that_jumps_costs_its_window_and_no_other_one() -> None:
    readings = iter([Reading(busy, 0.0, 0.0, None) for busy in (0.0, 9.0, 9.5, 10.5)])
    clock = iter([100.0, 1.0, 2.0, 1002.0])
    watch = Watch(cores=4, threads=1, read=lambda: next(readings), clock=lambda: next(clock))
    for _ in range(3):
        watch.look()
    back, forth = watch.conditions().windows
    assert (back.seconds, back.others_cores) == (1.0, pytest.approx(0.5))
    assert (forth.seconds, forth.others_cores) == (1000.0, pytest.approx(0.001))


def test_a_system_that_does_not_say_who_waited_gives_none() -> None:
    clock: Iterator[float] = iter([0.0, 1.0])
    watch = Watch(cores=1, threads=1, read=lambda: Reading(0.0, 0.0, 0.0, None), clock=lambda: next(clock))
    watch.waited(None)
    watch.look()
    assert watch.conditions().windows[0].waited is None
    assert watch.conditions().busy_throughout() == ""


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ((QUIET,) * 10, ""),
        ((QUIET,) * 6 + (GUEST,) * 4, ""),
        ((), ""),
        ((GUEST,) * 10, "other programs used 1.9 of 2 cores, workers waited 45 % of the time for a core"),
        ((QUIET,) * 5 + (STOLEN,) * 5, "the host of this virtual machine took 15 % of its time"),
    ],
)
def test_busy_throughout_is_half_of_the_windows(windows: tuple[Window, ...], said: str) -> None:
    conditions = seen(*windows)
    assert conditions.busy_throughout() == (f"the machine was busy throughout: {said}" if said else "")


def test_a_neighbour_on_a_free_core_disturbs_nobody() -> None:
    window = Window(seconds=1.0, others_cores=1.0, stolen=0.0, waited=0.0, mhz=None)
    assert seen(window, cores=4, threads=1).disturbed == 0.0
    assert seen(window, cores=4, threads=4).disturbed == 1.0


def test_a_busy_machine_keeps_its_numbers_and_certifies_nothing() -> None:
    busy = measured(seen(*(GUEST,) * 4))
    assert not busy.certifiable
    assert "busy throughout" in busy.reason
    assert len(busy.timings) == 1
    assert measured(seen(*(QUIET,) * 4)).certifiable


def test_time_that_was_lost_to_others() -> None:
    """45 % waited; 30 % stolen and 0.1 % waited; else 1.9 + 1 cores are wanted of 2."""
    assert seen(GUEST, GUEST).lost == pytest.approx(0.45)
    assert seen(STOLEN, QUIET).lost == pytest.approx((0.3 + 0.001) / 2)
    assert seen(Window(1.0, 1.9, 0.0, None, None)).lost == pytest.approx(0.9)
    assert seen(Window(1.0, 1.9, 0.5, None, None)).lost == 1.0
    assert seen().lost == 0.0


def test_a_machine_that_disagrees_with_itself_certifies_nothing() -> None:
    assert measured(seen(QUIET), floor=0.02).reason == ""
    assert measured(seen(QUIET), floor=0.25).reason == (
        "two workers of the same file differ by up to 25 %, so the machine is not steady"
    )


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (
            seen(*(GUEST,) * 4),
            ("busy throughout", "certified only with a margin larger than that", "stop other programs"),
        ),
        (
            seen(*(QUIET,) * 3, GUEST),
            ("busy for 25 % of the time", "other programs used 0.5 of 2 cores", "--seconds"),
        ),
        (
            seen(QUIET, Window(1.0, 0.0, 0.0, 0.0, 1200.0)),
            ("frequency moved between 1200 and 2500 MHz", "governor 'performance'"),
        ),
    ],
)
def test_a_warning_names_the_cause_and_what_to_try(conditions: Conditions, said: tuple[str, ...]) -> None:
    (text,) = find_warnings([timing()], MACHINE, settled=True, floor=0.01, conditions=conditions)
    assert all(part in text for part in said), text


def test_a_quiet_machine_is_not_warned_about() -> None:
    assert find_warnings([timing()], MACHINE, settled=True, floor=0.01, conditions=seen(*(QUIET,) * 9)) == []


def test_a_noisy_floor_names_flags_to_try() -> None:
    (text,) = find_warnings([timing()], MACHINE, settled=True, floor=0.08)
    assert "two workers of the same file differ by up to 8.0 %" in text
    assert "--threads 1" in text
    assert "--seconds" in text


def test_times_of_calls_with_different_inputs_are_not_compared_silently() -> None:
    pair = [timing("one"), timing("eight", "8x3 float32")]
    (text,) = find_warnings(pair, MACHINE, settled=True, floor=0.01)
    assert "('one': 1x3 float32; 'eight': 8x3 float32)" in text


def test_conditions_are_json() -> None:
    told = json.loads(json.dumps(seen(QUIET, GUEST).as_json()))
    assert told["disturbed"] == 0.5
    assert told["windows"][1]["others_cores"] == 1.9


def test_counters_only_grow_and_survive_a_worker_that_is_gone() -> None:
    gone = max(psutil.pids()) + 1_000_000
    before = read_counters([gone])
    sum(range(300_000))
    after = read_counters([gone])
    assert after.busy_s >= before.busy_s > 0
    assert after.own_s >= before.own_s > 0
    assert after.at_s > before.at_s


def test_a_process_has_used_what_psutil_says_it_has() -> None:
    sum(range(3_000_000))
    said = psutil.Process().cpu_times()
    assert counters._own_seconds(os.getpid()) == pytest.approx(said.user + said.system, abs=0.1)


def test_idle_time_does_not_move_a_busy_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "own_cores", lambda: [0])
    seen = set()
    for ticks in range(1000):
        core = {"user": 103_302.37, "system": 0.01, "idle": 61_034.11 + ticks / 100, "steal": 481.38}
        monkeypatch.setattr(counters, "core_times", lambda core=core: {0: core})
        seen.add(read_counters([]).busy_s)
    assert seen == {103_302.37 + 0.01}


def test_only_the_cores_this_process_may_use_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {
        0: {"user": 50.0, "idle": 1.0, "steal": 9.0, "guest": 0.0},
        1: {"user": 7.0, "idle": 40.0, "steal": 0.5, "guest": 2.0},
    }
    monkeypatch.setattr(counters, "core_times", lambda: cores)
    monkeypatch.setattr(counters, "own_cores", lambda: [1])
    reading = read_counters([])
    assert reading.busy_s == pytest.approx(7.0)
    assert reading.stolen_s == 0.5


def test_the_kernels_ticks_are_those_that_psutil_reads() -> None:
    ours, theirs = core_times(), psutil.cpu_times(percpu=True)
    assert [*ours] == [*range(len(theirs))]
    for core, said in enumerate(theirs):
        assert ours[core]["user"] == pytest.approx(said.user, abs=2)
        assert ours[core]["system"] == pytest.approx(said.system, abs=2)


def ended(mhz: float, after: float, celsius: float, throttled: int, swapped: int) -> dict[str, object]:
    counted = Reading(0.0, 0.0, 0.0, after, 0.0, celsius, throttled, swapped)
    return {"mhz": mhz, "after": vars(counted)}


def test_a_round_whose_frequency_fell_by_more_than_5_percent_is_marked() -> None:
    watch = Watch(cores=2, threads=1, read=lambda: Reading(0.0, 0.0, 0.0, 2000.0, 0.0, 50.0, 7, 100))
    watch.rounds([ended(2000, 1901, 60.0, 7, 100), ended(2000, 1899, 81.0, 9, 100), ended(1500, 2000, 70.0, 9, 130)])
    found = watch.conditions()
    assert (found.rounds, found.slowed, found.celsius) == (3, 1, 81.0)
    assert (found.throttled, found.swapped) == (2, 30)
    slowed, hot, swapped = find_warnings([timing()], MACHINE, settled=True, floor=0.01, conditions=found)
    assert "fell by more than 5 % within 1 of 3 rounds" in slowed
    assert "slowed itself down 2 times because it was hot (up to 81 degrees Celsius)" in hot
    assert "30 pages were swapped" in swapped


def rounds_of(*mhz: float, fell: int = 0, celsius: float | None = None) -> Conditions:
    """Rounds that ended with these frequencies, in so many of which the processor was slowed down."""
    return Conditions((QUIET,), 2, 1, rounds=len(mhz), slowed=fell, hindered=fell, mhz=mhz, celsius=celsius)


def test_a_processor_that_slows_down_in_half_of_the_rounds_or_for_good_certifies_nothing() -> None:
    steady = rounds_of(*[2000.0] * 6)
    assert (steady.slowed_down(), steady.slowdown, measured(steady).certifiable) == ("", 1.0, True)
    # Two of six rounds, and no lasting fall: a processor that takes a breath now and then.
    assert rounds_of(2000, 1600, 2000, 1600, 2000, 2000, fell=2).slowed_down() == ""
    half = rounds_of(2000, 1600, 2000, 1600, 2000, 1600, fell=3, celsius=84.6)
    assert measured(half).reason == (
        "the processor slowed down in 3 of 6 rounds, from 2000 to 1600 MHz, at up to 85 degrees Celsius"
    )
    assert half.slowdown == 1.25
    lasting = rounds_of(2000, 2000, 1990, 1700, 1500, 1490)
    assert lasting.slowed_down() == "the processor's frequency fell from 2000 to 1495 MHz while measuring"
    assert lasting.slowdown == 2000 / 1490
    assert rounds_of(1500, 1500, 1600, 1900, 2000, 2000).slowed_down() == ""
    unknown = Conditions((QUIET,), 2, 1, rounds=4, hindered=2)
    assert (unknown.slowed_down(), unknown.slowdown) == ("the processor slowed down in 2 of 4 rounds", float("inf"))


def test_a_slow_processor_and_a_guest_are_both_named_and_warned_about_once() -> None:
    both = replace(rounds_of(2000, 1500, fell=2), windows=(GUEST,) * 4, throttled=3)
    assert "busy throughout" in measured(both).reason
    assert measured(both).reason.endswith(", and the processor slowed down in 2 of 2 rounds, from 2000 to 1500 MHz")
    busy, slow = find_warnings([timing()], MACHINE, settled=True, floor=0.01, conditions=both)
    assert "busy throughout" in busy
    assert "slowed down in 2 of 2 rounds, from 2000 to 1500 MHz; a budget is certified only with a margin" in slow


# An agent of a machine whose frequency falls in every round, and which counts that it was hot.
_HOT = """
import sys
from itertools import count
from pathlib import Path
from dataclasses import replace
from deploypruner.device import agent
rounds, read = count(1), agent.read_counters
agent.frequency_mhz = lambda: 2400.0
agent.read_counters = lambda pids: replace(read(pids), mhz=1500.0, celsius=86.0, throttled=next(rounds))
agent.main(Path(sys.argv[1]))
"""


# One whose date is set back and forth all the time, as on a board without a battery that asks the network for it.
_JUMPING = """
import sys, time
from itertools import cycle
from pathlib import Path
from deploypruner.device import agent
dates = cycle([0.0, 4e9, 1e9])
time.time = lambda: next(dates)
time.time_ns = lambda: int(1e9 * next(dates))
agent.main(Path(sys.argv[1]))
"""


class JumpingTransport(LocalTransport):
    """This machine, with a date that jumps."""

    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """See `Transport.start`."""
        with mock.patch.object(local, "_COMMAND", (sys.executable, "-P", "-c", _JUMPING)):
            return super().start(log)


@pytest.mark.slow
def test_a_date_that_jumps_changes_no_time_that_is_measured(tmp_path: Path) -> None:
    job = (Artifact("m", save_conv(tmp_path / "m.onnx", 16), "onnx", "fp32"), "onnxruntime")
    with Device(JumpingTransport()) as device:
        run = time_artifacts([job], budget_s=0.6, min_rounds=10, device=device)
    assert not run.failures
    assert run.timings[0].samples_ns.min() > 0
    assert 0.5 <= sum(window.seconds for window in run.conditions.windows) < 60


class HotTransport(LocalTransport):
    """This machine, said to be hot."""

    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """See `Transport.start`."""
        with mock.patch.object(local, "_COMMAND", (sys.executable, "-P", "-c", _HOT)):
            return super().start(log)


@pytest.mark.slow
def test_what_is_said_of_each_round_reaches_the_certificate(tmp_path: Path) -> None:
    files = [save_conv(tmp_path / f"{name}.onnx", channels) for name, channels in (("dense", 32), ("pruned", 4))]
    jobs = [
        (Artifact(path.stem, path, "onnx", "fp32", pattern), "onnxruntime")
        for path, pattern in zip(files, ("dense", "channel"), strict=True)
    ]
    with Device(HotTransport()) as device:
        run = time_artifacts(jobs, budget_s=0.2, min_rounds=10, device=device)
    run = replace(run, floor=0.0, conditions=replace(run.conditions, windows=()))
    found = run.conditions
    assert found.rounds == found.slowed == found.hindered >= 10
    assert (found.celsius, {*found.mhz}) == (86.0, {2400.0, 1500.0})
    said = f"the processor slowed down in {found.rounds} of {found.rounds} rounds, from 2400 to 1500 MHz, at "
    assert run.reason.startswith(said)
    setting = Setting("onnxruntime", "fp32")
    ms = certify(Goal(Budget(latency=1e6), 10.0), setting, run).measured
    assert ms is not None
    # 1500 of 2400 MHz: a promise needs 1.6 times as much room.
    kept = certify(Goal(Budget(latency=3 * ms), 10.0), setting, run)
    assert (kept.met, "its interval was widened by 1.60x" in kept.doubt) == (True, True)
    refused = certify(Goal(Budget(latency=1.5 * ms), 10.0), setting, run)
    assert (refused.met, refused.bound) == (None, None)
    assert refused.doubt.startswith(f"{said}up to 86 degrees Celsius")
    assert refused.doubt.endswith("and the margin is no larger than that")
