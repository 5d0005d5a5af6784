"""Starting the processes of a team, and bringing back what they made; the calling process itself goes on once.

Processes are forked, so that models, data and the user's functions need no serialisation. That is how torch's
DataLoader starts its workers too, and has the same two limits: no Windows, and CUDA must not have been used before.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import multiprocessing

from deploypruner import errors
from deploypruner.errors import DeployPrunerError, InputError, RecipeError
from deploypruner.progress import Progress
from deploypruner.train.process_group import FabricTeam, Team

_HOST_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_OURS = "train on one device, or run where processes can be forked (Linux)"


def run_together(
    job: Callable[[Team, Progress], bytes], *, accelerator: str, devices: int, hosts: int, progress: Progress
) -> bytes:
    """Run `job` in `devices` processes on each of `hosts` machines, and return what local rank 0 returned.

    Args:
        job: Called in every process with its team and a progress that reaches the caller's where the rank is 0. On
            "cuda" the process's own GPU is the current one.
        accelerator: "cpu" or "cuda".
        devices: Processes here.
        hosts: Machines; with more than one, the environment says where they meet.
        progress: Told what rank 0 tells.

    Raises:
        DeployPrunerError: What the job raised in any process.
        InputError: Lightning Fabric is missing, too few GPUs, CUDA in use already, or a process that died.
        RecipeError: Several hosts, and nothing says where they meet.
    """
    _require_possible(accelerator, devices, hosts)
    from lightning_fabric import Fabric  # an optional dependency, which takes seconds to import

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with _environment(), _listening(devices, progress) as (ends, heard):
        fabric: Any = Fabric(accelerator=accelerator, devices=devices, num_nodes=hosts, strategy="ddp_fork")
        earlier = set(multiprocessing.active_children())
        try:
            fabric.launch(_member, job, ends)
        except (multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException) as error:
            heard["died"] = error
        finally:  # SIGTERM reaches this process alone, and the others would train on
            for child in set(multiprocessing.active_children()) - earlier:
                child.kill()
                child.join()
    if "error" in heard:
        name, message, hint = heard["error"]
        kind: type[DeployPrunerError] = getattr(errors, name, InputError)
        raise kind(message, hint=hint)
    if "result" not in heard:
        cause = heard.get("died")
        raise InputError(
            f"a training process ended before its work was done: {str(cause).strip().splitlines()[-1]}",
            hint="run the same command with --resume; fewer devices or a smaller batch need less memory",
        ) from cause
    result: bytes = heard["result"]
    return result


def _member(fabric: Any, job: Callable[[Team, Progress], bytes], ends: Sequence[Any]) -> None:
    """What one process does; it speaks through its own end."""
    team, end = FabricTeam(fabric), ends[fabric.local_rank]
    if fabric.device.type == "cpu":
        torch.set_num_threads(1)  # more would wait for the pool that stayed in the parent
    else:
        torch.cuda.set_device(fabric.device)
    try:
        result = job(team, _Telling(end if team.rank == 0 else None))
    except DeployPrunerError as error:
        end.send(("error", (type(error).__name__, error.message, error.hint)))
        sys.exit(1)  # the others end with it, wherever they are
    fabric.barrier()
    if fabric.local_rank == 0:
        end.send(("result", result))


class _Telling:
    """A progress that sends everything to the parent."""

    def __init__(self, end: Any) -> None:
        self._end = end

    def start(self, total: int, label: str) -> None:
        self._tell("start", total, label)

    def advance(self, n: int = 1, text: str = "") -> None:
        self._tell("advance", n, text)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, name: str, *values: object) -> None:
        if self._end is not None:
            self._end.send((name, values))


@contextmanager
def _listening(processes: int, progress: Progress) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """One end of a pipe for each process to be forked in the block, and what came through: a result, or an error.

    Each process has a pipe of its own, because one that is killed while it writes would leave a shared lock locked.
    """
    heard: dict[str, Any] = {}
    pipes: list[Any] = [multiprocessing.Pipe(duplex=False) for _ in range(processes)]

    def listen() -> None:
        open_ends: list[Any] = [reader for reader, _ in pipes]
        while open_ends:
            ready: list[Any] = wait(open_ends)
            for reader in ready:
                try:
                    name, values = reader.recv()
                except (EOFError, OSError):  # OSError: it ended in the middle of a message
                    open_ends.remove(reader)
                    continue
                if name in ("error", "result"):
                    heard.setdefault(name, values)
                else:
                    getattr(progress, name)(*values)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield [writer for _, writer in pipes], heard
    finally:
        for _, writer in pipes:
            writer.close()  # the processes have ended, so this is the last copy: the listener reads the end
        listener.join(timeout=10)


@contextmanager
def _environment() -> Iterator[None]:
    """Fabric leaves the address of this team in the environment; the next team needs its own."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _require_possible(accelerator: str, devices: int, hosts: int) -> None:
    try:
        import lightning_fabric  # noqa: F401 - an optional dependency
    except ModuleNotFoundError as error:
        raise InputError(
            "training on several devices needs Lightning Fabric", hint="pip install 'deploypruner[distributed]'"
        ) from error
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError("this platform cannot fork processes to train on several devices", hint=_OURS)
    missing = [name for name in _HOST_VARIABLES if not os.environ.get(name)]
    if hosts > 1 and missing:
        raise RecipeError(
            f"training on {hosts} hosts needs {', '.join(missing)} in the environment",
            hint="the address and a free port of the first host, and the number of this one, from 0",
        )
    if accelerator == "cuda":
        found = torch.cuda.device_count()
        if found < devices:
            raise InputError(f"{devices} GPUs were asked for, and this machine has {found}", hint="set devices")
        if torch.cuda.is_initialized():
            raise InputError(
                "processes cannot be forked once CUDA is in use, and this process has used it",
                hint="keep the model on the CPU; every process moves its copy to its own GPU",
            )
