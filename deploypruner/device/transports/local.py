"""The machine this runs on: a process beside this one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, ClassVar

from deploypruner.device.transports import Transport
from deploypruner.registries import transports

_PACKAGE_ROOT = Path(__file__).parents[3]
_COMMAND = (sys.executable, "-P", "-m", "deploypruner.device.agent")


@transports.register("local")
class LocalTransport(Transport):
    """The machine this runs on: a process beside this one."""

    shares_files: ClassVar[bool] = True
    silent_when_cut: ClassVar[bool] = False

    def __init__(self) -> None:
        self.name = "cpu"

    def start(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """See `Transport.start`."""
        search = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            [*_COMMAND, tempfile.gettempdir()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
            # Ctrl-C reaches the parent only, which then ends its workers.
            start_new_session=True,
        )
