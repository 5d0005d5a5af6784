"""The machine whose time counts: this one, or another that is connected; what is known of it without measuring."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from deploypruner.device import facts
from deploypruner.device.connection import Device
from deploypruner.device.described import HERE, DescribedTarget
from deploypruner.target import Target


class Machine:
    """A machine that files are made for and timed on.

    Attributes:
        device: It, connected; None for this one.
        described: It, as the user described it.

    Args:
        device: See there.
        described: See there.
    """

    def __init__(self, device: Device | None = None, described: DescribedTarget | None = None) -> None:
        self.device, self.described = device, described or DescribedTarget(HERE)

    @property
    def name(self) -> str:
        """As the user calls it: "cpu", an address, or a name in targets.toml."""
        return self.described.name

    @property
    def elsewhere(self) -> bool:
        """Is it another machine than this one?"""
        return self.device is not None

    @property
    def target(self) -> Target:
        """Processor and instruction sets."""
        said: dict[str, Any] = self._identity["target"]
        found: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in said.items()}
        return replace(Target(**found), name=self.name)

    @property
    def physical_cores(self) -> int:
        """Cores that may be used there, a hyper-thread not counted where its core is."""
        cores = len(self.described.cores)
        return min(cores, self._identity["physical_cores"]) if cores else int(self._identity["physical_cores"])

    @property
    def limits(self) -> dict[str, str]:
        """Variables that are set there and keep OpenVINO from using all instructions."""
        return dict(self._identity["limits"])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What times depend on, JSON-able: the hardware, and what the user set for workers; no name, no address."""
        set_there = {"pinned": list(self.described.cores), "variables": dict(self.described.environment)}
        return {**self._identity["fingerprint"], **{name: value for name, value in set_there.items() if value}}

    def version(self, package: str) -> str:
        """Of a package that is installed there, "" where it is not."""
        return str(self._identity["versions"].get(package) or "")

    def environment(self) -> dict[str, Any]:
        """Machine and software before a measurement, see `facts.environment`."""
        return facts.environment() if self.device is None else self.device.environment()

    def to_json(self) -> dict[str, Any]:
        """For report.json: what `Target` says."""
        return asdict(self.target)

    @property
    def _identity(self) -> dict[str, Any]:
        return facts.identity() if self.device is None else self._there

    @cached_property
    def _there(self) -> dict[str, Any]:
        assert self.device is not None, "this machine is asked each time"
        return self.device.identity()
