"""How a device is reached: one file each, found by the scheme of an address."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from typing import IO, Any, ClassVar, Protocol

from deploypruner.errors import DeviceError


class Greeter(Protocol):
    """What a transport needs of a connection before the agent is there."""

    def first_words(self) -> dict[str, Any]:
        """The next line with our mark."""

    def send_file(self, some: bytes) -> None:
        """Write bytes that count as sent."""


class Transport(ABC):
    """A way to an agent.

    Attributes:
        name: Of the device, as the user wrote it.
        cores: Processor cores that workers are pinned to; () for the best there are.
        shares_files: Does the agent see the files of this machine under their names here?
        silent_when_cut: May the connection break without the agent's input ending?
    """

    name: str
    cores: tuple[int, ...] = ()
    shares_files: ClassVar[bool] = False
    silent_when_cut: ClassVar[bool] = True

    @abstractmethod
    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start what ends up as the agent, with pipes to it and from it; what it says else goes to `log`."""

    def greet(self, device: Greeter) -> dict[str, Any]:
        """The agent's first words, after whatever has to come before them.

        Raises:
            DeviceError: The device cannot be used, and why.
        """
        return device.first_words()

    def no_agent(self, code: int | None, log: str, foreign: str) -> DeviceError:
        """Why the stream ended, or never was ours.

        Args:
            code: Exit code of what was started, None where it still runs.
            log: What it said.
            foreign: What came before our own first line, and instead of it.
        """
        last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
        return DeviceError(f"{self.name}: the measuring process ended ({code}){f': {last}' if last else ''}")

    def no_answer(self, log: str) -> DeviceError:
        """Why nothing came in time."""
        return DeviceError(f"{self.name} does not answer", hint="is it still running?")

    def no_room(self, why: str, what: str) -> DeviceError:
        """Why a file could not be kept."""
        return DeviceError(f"{self.name}: cannot keep {what} there: {why.lower()}", hint="free some space there")
