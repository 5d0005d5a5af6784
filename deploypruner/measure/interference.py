"""What else the machine did while it was measuring: other programs, stolen time, frequency, heat.

Each window of about half a second is judged alone, so that a neighbour who came and went is told from one who
was there throughout.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from statistics import median
from typing import Any

from deploypruner.device.counters import Reading

WINDOW_S = 0.5
# A worker that loses a twentieth of its time to somebody else is slower by more than any bound of ours is wide.
_DISTURBED = 0.05
# Half of one core is what a desktop does by itself; more leaves no room for the worker's threads.
SLACK_CORES = 0.5
_THROUGHOUT = 0.5
_FREQUENCY_MOVES = 0.05
# Rounds of which the first and the last third can be told apart.
_FEWEST_IN_THIRDS = 6


@dataclass(frozen=True)
class Window:
    """A piece of a run.

    Args:
        seconds: Its length.
        others_cores: Cores in use by programs that are not ours, on the whole machine.
        stolen: Share of the workers' time that the host of a virtual machine took away, 0 to 1.
        waited: Share of the time that workers were ready to run while somebody else had their core, 0 to 1; None
            where the system does not say.
        mhz: Frequency of the fastest core at the end of it, None where the system does not say.
    """

    seconds: float
    others_cores: float
    stolen: float
    waited: float | None
    mhz: float | None


@dataclass(frozen=True)
class Conditions:
    """What the machine did during a run.

    Args:
        windows: In order; none where the run was shorter than one.
        cores: Cores of the machine this process may use.
        threads: Threads of every worker.
        rounds: How many there were.
        slowed: In how many of them the frequency fell by more than 5 %.
        celsius: The highest temperature seen at the end of a round, None where the system shows none.
        throttled: How often cores were slowed down because they were hot.
        hindered: In how many rounds the frequency fell so or a core was slowed down.
        mhz: Frequency of the fastest core at the end of each round, as far as the system says; of rounds whose
            frequency fell, the one before as well.
        swapped: Pages that were moved to and from the disk.
        losses: How often the connection to the machine was lost, and a round with it.
    """

    windows: tuple[Window, ...]
    cores: int
    threads: int
    rounds: int = 0
    slowed: int = 0
    celsius: float | None = None
    throttled: int = 0
    swapped: int = 0
    losses: int = 0
    hindered: int = 0
    mhz: tuple[float, ...] = ()

    @property
    def disturbed(self) -> float:
        """Share of the windows, 0 to 1, in which somebody else needed the cores too."""
        if not self.windows:
            return 0.0
        return sum(bool(self._why(window)) for window in self.windows) / len(self.windows)

    @property
    def others_cores(self) -> float:
        """Mean of cores in use by other programs."""
        return self._mean([window.others_cores for window in self.windows])

    @property
    def stolen(self) -> float:
        """Mean share of stolen time."""
        return self._mean([window.stolen for window in self.windows])

    @property
    def waited(self) -> float:
        """Mean share of time that workers waited for a core."""
        return self._mean([window.waited or 0.0 for window in self.windows])

    @property
    def lost(self) -> float:
        """Mean share of the workers' time that others took, 0 to 1.

        Where the system does not say how long workers waited, all that others used beyond the cores that were free
        was theirs.
        """
        return self._mean([min(1.0, self._waited(window) + window.stolen) for window in self.windows])

    def _waited(self, window: Window) -> float:
        if window.waited is not None:
            return window.waited
        return max(0.0, window.others_cores + self.threads - self.cores) / self.threads

    @property
    def mhz_moved(self) -> tuple[float, float] | None:
        """Lowest and highest frequency where they lie more than 5 % apart."""
        seen = [window.mhz for window in self.windows if window.mhz]
        if not seen or min(seen) >= max(seen) * (1 - _FREQUENCY_MOVES):
            return None
        return min(seen), max(seen)

    def busy_throughout(self) -> str:
        """Why the machine cannot be said to have been free for the workers, "" where it was.

        It was not free where somebody else needed the cores in at least half of the windows: then the samples
        describe the machine with its guest, and no statistic can take the guest away.
        """
        if self.disturbed < _THROUGHOUT:
            return ""
        return f"the machine was busy throughout: {self.reasons()}"

    def slowed_down(self) -> str:
        """Why the processor cannot be said to have run at one speed, "" where it did.

        It did not where half of the rounds were slowed down, by heat or anything else, or where the last third
        ran more than 5 % slower than the first: then samples tell of a speed that the processor does not keep.
        """
        hot = "" if self.celsius is None else f", at up to {self.celsius:.0f} degrees Celsius"
        if self.rounds and self.hindered >= _THROUGHOUT * self.rounds:
            fell = f", from {max(self.mhz):.0f} to {min(self.mhz):.0f} MHz" if self.mhz else ""
            return f"the processor slowed down in {self.hindered} of {self.rounds} rounds{fell}{hot}"
        third = len(self.mhz) // 3
        if len(self.mhz) >= _FEWEST_IN_THIRDS:
            first, last = median(self.mhz[:third]), median(self.mhz[-third:])
            if last < first * (1 - _FREQUENCY_MOVES):
                return f"the processor's frequency fell from {first:.0f} to {last:.0f} MHz while measuring{hot}"
        return ""

    @property
    def slowdown(self) -> float:
        """By what factor a slowed processor may have changed any time: highest over lowest frequency of rounds.

        1 where it was not slowed, infinite where the system does not say how fast it ran.
        """
        if not self.slowed_down():
            return 1.0
        return max(self.mhz) / min(self.mhz) if self.mhz else inf

    def reasons(self) -> str:
        """Who disturbed, with numbers; "" where nobody did."""
        found = dict.fromkeys(why for window in self.windows for why in self._why(window))
        said = {
            "others": f"other programs used {self.others_cores:.1f} of {self.cores} cores",
            "waited": f"workers waited {100 * self.waited:.0f} % of the time for a core",
            "stolen": f"the host of this virtual machine took {100 * self.stolen:.0f} % of its time",
        }
        return ", ".join(text for why, text in said.items() if why in found)

    def as_json(self) -> dict[str, Any]:
        """Windows and what follows from them."""
        return {
            "disturbed": self.disturbed,
            "others_cores": self.others_cores,
            "stolen": self.stolen,
            "waited": self.waited,
            "rounds": self.rounds,
            "slowed": self.slowed,
            "celsius": self.celsius,
            "throttled": self.throttled,
            "hindered": self.hindered,
            "mhz": list(self.mhz),
            "swapped": self.swapped,
            "losses": self.losses,
            "windows": [asdict(window) for window in self.windows],
        }

    def _why(self, window: Window) -> list[str]:
        crowded = window.others_cores > SLACK_CORES and window.others_cores + self.threads > self.cores + SLACK_CORES
        found = {
            "others": crowded,
            "waited": window.waited is not None and window.waited > _DISTURBED,
            "stolen": window.stolen > _DISTURBED,
        }
        return [why for why, is_true in found.items() if is_true]

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else 0.0


class Watch:
    """Cuts a run into windows.

    Args:
        cores: Cores of the machine this process may use.
        threads: Threads of every worker.
        read: Returns the counters; a test may pass its own.
        clock: Seconds; a test may pass its own.
    """

    def __init__(
        self,
        *,
        cores: int,
        threads: int,
        read: Callable[[], Reading],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cores, self._threads = cores, threads
        self._read, self._clock = read, clock
        self._windows: list[Window] = []
        self._since, self._before = clock(), read()
        self._waited_s: float | None = None
        self._first = self._last = self._before
        self._rounds = self._slowed = self._losses = self._throttled = self._swapped = self._hindered = 0
        self._mhz: list[float] = []
        self._hottest = self._before.celsius

    def rounds(self, ended: Sequence[Mapping[str, Any]]) -> None:
        """Add rounds: {"mhz": before it, "after": counters at its end}."""
        for one in ended:
            before, earlier, self._last = one["mhz"], self._last, Reading(**one["after"])
            self._rounds += 1
            fell = bool(before and self._last.mhz and self._last.mhz < before * (1 - _FREQUENCY_MOVES))
            self._slowed += fell
            self._hindered += fell or (self._last.throttled or 0) > (earlier.throttled or 0)
            self._mhz += [mhz for mhz in (before if fell else None, self._last.mhz) if mhz]
            if self._last.celsius is not None:
                self._hottest = max(self._hottest or self._last.celsius, self._last.celsius)

    def regained(self) -> None:
        """Begin anew: the connection was lost, and the machine may have started anew with all its counters."""
        self._add_up()
        self._losses += 1
        self._since, self._before, self._waited_s = self._clock(), self._read(), None
        self._first = self._last = self._before

    def _add_up(self) -> None:
        self._throttled += (self._last.throttled or 0) - (self._first.throttled or 0)
        self._swapped += (self._last.swapped or 0) - (self._first.swapped or 0)
        self._first = self._last

    def waited(self, nanoseconds: int | None) -> None:
        """Add time that a worker waited for its core in one block; None where it cannot tell."""
        if nanoseconds is not None:
            self._waited_s = (self._waited_s or 0.0) + nanoseconds / 1e9

    def look(self) -> None:
        """Close the window if it is long enough; call it after each round."""
        now = self._clock()
        seconds = now - self._since
        if seconds < 0:  # a clock that was set back would keep the window open for as long
            self._since, self._before, self._waited_s = now, self._read(), None
            return
        if seconds < WINDOW_S:
            return
        after = self._read()
        before = self._before
        others = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
        self._windows.append(
            Window(
                seconds=seconds,
                others_cores=max(0.0, others / seconds),
                stolen=min(1.0, max(0.0, (after.stolen_s - before.stolen_s) / seconds / self._threads)),
                waited=None if self._waited_s is None else min(1.0, self._waited_s / seconds / self._threads),
                mhz=after.mhz,
            )
        )
        self._since, self._before, self._waited_s = now, after, None

    def conditions(self) -> Conditions:
        """What was seen so far."""
        self._add_up()
        return Conditions(
            tuple(self._windows),
            self._cores,
            self._threads,
            rounds=self._rounds,
            slowed=self._slowed,
            celsius=self._hottest,
            throttled=self._throttled,
            swapped=self._swapped,
            losses=self._losses,
            hindered=self._hindered,
            mhz=tuple(self._mhz),
        )
