"""Trials as tasks of Ray, on this machine or on a cluster; needs `deploypruner[ray]`.

Only Ray Core is used: a task for each trial, no actors, and no state but what the driver has on disk. A node that is
lost costs the trials that ran there, and they are started again elsewhere, once. What a trial gives comes back to
the driver, which alone writes; a worker keeps nothing. As in `workers.py` a trial computes on one thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from deploypruner.atomic import write_json
from deploypruner.errors import DeployPrunerError, InputError, said_by
from deploypruner.sweep.records import AUTO, HERE, host_and_port
from deploypruner.sweep.shipped import Shipped, digest, pack, unpacked
from deploypruner.sweep.trial import TrialContext, run_trial
from deploypruner.sweep.trial_record import SweepTrial, TrialResult, result_json, result_of
from deploypruner.sweep.workers import read_result

_RETRIES = 1
_LOOK_S = 1.0
_CONNECT_S = 5.0
_QUIET: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}


class RayCluster:
    """A connection to Ray, for one sweep; a context manager.

    What the process is connected to already is used, and stays connected.

    Args:
        address: `HERE`, `AUTO` for the cluster that this machine belongs to, or "HOST:PORT" of its head.
        workers: Trials at a time, where Ray is started here; a cluster runs as many as it has room for.

    Raises:
        InputError: Ray is not installed, cannot be reached, or is of another version.
    """

    def __init__(self, address: str, *, workers: int) -> None:
        self._ray = _imported()
        self._context: Any = None
        self._users = self._ray.is_initialized()
        if self._users:
            return
        if address not in (HERE, AUTO):
            _require_open(address)
        here = {"address": "local", "num_cpus": workers, "include_dashboard": False}
        try:
            self._ray.init(**(here if address == HERE else {"address": address}), **_QUIET)
        except Exception as cause:  # Ray raises ConnectionError, RuntimeError, ValueError, and its own
            raise _refused(address, cause) from cause

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    @property
    def text(self) -> str:
        """What it is, for the log."""
        found = self._ray.cluster_resources()
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        each = "one trial a GPU" if self.gpus else "one trial a core"
        return (
            f"Ray {self._ray.__version__}: {nodes} node(s), {found.get('CPU', 0):g} cores, {self.gpus} GPUs, {each}"
        )

    def run(
        self, trials: Sequence[tuple[str, SweepTrial]], context: TrialContext, folder: Path
    ) -> Iterator[tuple[str, TrialResult]]:
        """Run trials that are not finished; as `run_in_workers`.

        Args:
            trials: Identity of each, and what is to be tried.
            context: What they share; it is sent once.
            folder: Where results are: ID.json.

        Raises:
            InputError: The context cannot be sent, the connection broke, or a result cannot be written.
        """
        ray = self._ray
        folder.mkdir(parents=True, exist_ok=True)
        left = []
        for name, trial in trials:
            known = read_result(folder, name)
            if known is None:
                left.append((name, trial))
            else:
                yield name, known
        if not left:
            return
        if self._context is None:
            shipped = pack(context, ray.cloudpickle)
            self._context = (digest(shipped), ray.put(shipped))
        key, shared = self._context
        task = ray.remote(num_cpus=1, num_gpus=1 if self.gpus else 0, max_retries=_RETRIES)(_tried)
        running = {task.remote(key, shared, trial): name for name, trial in left}
        try:
            while running:
                done, _ = ray.wait(list(running), timeout=_LOOK_S)
                for reference in done:
                    name = running.pop(reference)
                    yield name, self._result(reference, folder / f"{name}.json")
        finally:
            for reference in running:
                with contextlib.suppress(Exception):  # the cluster may be gone, and with it the trial
                    ray.cancel(reference, force=True)

    def _result(self, reference: Any, file: Path) -> TrialResult:
        """The result of a task that ended, on disk before anybody hears of it."""
        errors = self._ray.exceptions
        try:
            document = self._ray.get(reference)
        except errors.OutOfMemoryError:
            return TrialResult.failed("its worker was out of memory; fewer trials a machine need less")
        except errors.RayTaskError as error:
            return TrialResult.failed(_said(error))
        except errors.RayError as error:  # a worker or a node that ended, more often than it is started again
            return TrialResult.failed(f"its worker ended {1 + _RETRIES} times: {said_by(error)}")
        write_json(file, document)
        return result_of(document)

    def close(self) -> None:
        """Let go of the cluster; one that was started here ends."""
        if not self._users:
            self._ray.shutdown()

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _imported() -> ModuleType:
    # What Ray would report home, and what it says of itself; before it is imported, which is when it looks.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # As trials without Ray: at its own niceness of 15 they would stand still beside anything else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.cloudpickle
    except ImportError as cause:
        raise InputError(
            "--ray needs Ray, which is not installed",
            hint="pip install 'deploypruner[ray]', or leave --ray out: --workers N runs N trials here",
        ) from cause
    found: ModuleType = ray
    return found


def _require_open(address: str) -> None:
    """Look whether anybody listens there: Ray itself would try for ten minutes.

    Raises:
        InputError: Nobody does.
    """
    host, port = host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as cause:
        raise _refused(address, cause) from cause


def _refused(address: str, cause: Exception) -> InputError:
    said = said_by(cause)
    if "version mismatch" in said.lower():
        return InputError(
            f"the cluster at {address} has another version of Ray or Python: {said}",
            hint="install the cluster's versions here, or these there",
        )
    if address == HERE:
        return InputError(f"Ray does not start here: {said}", hint="leave --ray out: --workers N needs no Ray")
    return InputError(
        f"no Ray cluster can be reached at {address}: {said}",
        hint="`ray start --head` prints the address of a cluster; --ray alone starts Ray on this machine",
    )


def _said(error: Any) -> str:
    """What a task raised, in one line; of ours the message alone."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DeployPrunerError):
        return cause.message
    return said_by(cause if isinstance(cause, Exception) else error)


def _tried(key: bytes, shipped: Shipped, trial: SweepTrial) -> dict[str, Any]:
    """What a worker does: the document of a result."""
    import ray.cloudpickle

    torch.set_num_threads(1)
    context = unpacked(key, shipped, ray.cloudpickle.loads)
    with tempfile.TemporaryDirectory(prefix="deploypruner-trial-") as folder:
        return result_json(trial, run_trial(context, trial, work=Path(folder) / "work"))
