"""From the name of a target to a connection."""

from __future__ import annotations

from deploypruner.device.connection import Device
from deploypruner.device.described import HERE, DescribedTarget
from deploypruner.device.transports.local import LocalTransport
from deploypruner.registries import transports


def reach(target: DescribedTarget) -> Device:
    """A device that is connected when its block begins."""
    if target.address is None:
        return Device(LocalTransport())
    return Device(transports.get(target.address.scheme)(target))


__all__ = ["HERE", "reach"]
