"""From the name of a target to a connection."""

from __future__ import annotations

from collections.abc import Callable

from deploypruner.device.connection import Device
from deploypruner.device.described import HERE, DescribedTarget
from deploypruner.device.transports.local import LocalTransport
from deploypruner.registries import transports


def reach(target: DescribedTarget, *, say: Callable[[str], None] = lambda line: None) -> Device:
    """A device that is connected when its block begins.

    Args:
        target: As it is described.
        say: Called with a line where the connection is lost on the way, and where it is back.
    """
    if target.address is None:
        return Device(LocalTransport(), say=say)
    return Device(transports.get(target.address.scheme)(target), say=say)


__all__ = ["HERE", "reach"]
