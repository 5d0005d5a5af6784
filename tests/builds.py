"""One tiny build, made once per test session through the real command line, and what tests do with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.export import Dim

from deploypruner.build.folder import WRITTEN
from deploypruner.build.stage import chain
from deploypruner.cli.main import main
from deploypruner.latency.clock import current_clock, using
from deploypruner.latency.kernel_rates import KernelRates
from deploypruner.logbook import LOG
from deploypruner.measure import Job, Measured
from deploypruner.records import Timing
from deploypruner.sparse.cost import Rates

CLASSES, IMAGE = 4, (3, 16, 16)
# Options of the build that everything is compared with; a resumed one has to repeat them.
COMPILE = (
    *("compile", "tiny.pt2", "--data", "labelled.npz", "--epochs", "3"),
    *("--seconds", "1", "--runtime", "onnxruntime"),
)
# What has to be the same to the last bit, however often a build was interrupted.
REPRODUCED = (
    *("plan.json", "weights.safetensors", "model.pt2"),
    *("model.fp32.onnx", "model.int8.onnx", "model.int8.xml", "model.int8.bin"),
)

FACTORIES = """
import torch
from tests.builds import Tiny, tiny


def broken():
    raise KeyError("no such setting")


def with_nan():
    net = tiny()
    net.body.weight.data[0, 0, 0, 0] = float("nan")
    return net


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(12, 16), torch.nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(x)
        if x.sum() > 0:
            x = 2 * x
        return self.b(x)


def one_layer():
    return torch.nn.Sequential(torch.nn.Linear(12, 4))


def diverges(student, teacher, data):
    with torch.no_grad():
        next(student.parameters()).fill_(float("nan"))


def fails(student, teacher, data):
    raise ValueError("learning rate missing")
"""


class Tiny(nn.Module):
    """A strided convolution, a residual one and a classifier."""

    def __init__(self, channels: int = IMAGE[0]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.body, self.head = nn.Conv2d(16, 16, 3, 1, 1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.body(x).relu()).mean((2, 3)))


def tiny(channels: int = IMAGE[0]) -> Tiny:
    """`Tiny` in eval mode, the same weights on every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(channels).eval()


def samples(count: int, seed: int = 0, shape: Sequence[int] = IMAGE) -> tuple[np.ndarray, np.ndarray]:
    """x [count, *shape] float32 and y [count] in 0..3; the class shifts the mean."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = rng.standard_normal((count, *shape)) + 0.5 * y.reshape(-1, *[1] * len(shape))
    return x.astype(np.float32), y


def save_program(net: nn.Module, path: Path, *inputs: torch.Tensor, dynamic: bool = True) -> None:
    """Write a .pt2 file."""
    shapes = tuple({0: Dim.DYNAMIC} for _ in inputs) if dynamic else None
    torch.export.save(torch.export.export(net.eval(), inputs, dynamic_shapes=shapes), path)


@functools.cache
def workshop() -> Path:
    """A folder with tiny.pt2, labelled.npz and factories.py; tests run the command line from inside it."""
    root = Path(tempfile.mkdtemp(prefix="deploypruner-tests-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    save_program(tiny(), root / "tiny.pt2", torch.zeros(2, *IMAGE))
    # Fewer than the 20 on which a net of random weights would be found to know nothing of the labels.
    (x, y), (x_val, y_val) = samples(48), samples(19, seed=1)
    np.savez(root / "labelled.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    (root / "factories.py").write_text(FACTORIES)
    return root


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def assert_error(self, code: int, *said: str) -> None:
        """Assert a clear failure: this exit code, these words, one hint, no traceback and nothing on stdout."""
        assert self.code == code, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        message = self.err[self.err.index("error: ") :]
        assert message.count("\nhint: ") == 1, message
        for words in said:
            assert words in message, message


def run_cli(*arguments: str, folder: Path | None = None) -> Outcome:
    """Run the command line in this process, in `folder` (the workshop when None), on one torch thread.

    No layer of it is timed: which ones stay float, and so the bytes of files, would follow from noise.
    """
    out, err = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    code = 0
    try:
        with (
            contextlib.chdir(folder or workshop()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["deploypruner", *arguments]),
            using(replace(current_clock(), layer_times=lambda files, *_, **__: [{} for _ in files])),
        ):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        torch.set_num_threads(threads)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def native_output(into: Path) -> Iterator[None]:
    """Send what is written past Python, straight to descriptors 1 and 2, to a file."""
    kept = [os.dup(1), os.dup(2)]
    with into.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, original in zip((1, 2), kept, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


@functools.cache
def _finished() -> tuple[Path, Outcome, str]:
    folder, native = workshop() / "finished", workshop() / "native.txt"
    with native_output(native):
        outcome = run_cli(*COMPILE, "--out", str(folder))
    assert outcome.code == 0, outcome.err
    return folder, outcome, native.read_text()


def finished() -> Path:
    """The finished build; tests read it and never write to it."""
    return _finished()[0]


def finished_outcome() -> Outcome:
    """What the command that made it said."""
    return _finished()[1]


def finished_chatter() -> str:
    """What libraries wrote past it while it was made."""
    return _finished()[2]


def copy_of_finished(to: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(finished(), to / "build")


def digests(folder: Path, names: Sequence[str] = REPRODUCED) -> dict[str, str]:
    """Name -> sha256."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


JUST_THE_LOG = {LOG, WRITTEN}
"""What a run that was refused for its model leaves in its folder."""


def files_in(folder: Path) -> set[str]:
    """Every file below a folder, relative to it; none where there is no folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def left_over(folder: Path) -> list[str]:
    """Half-written files and scratch folders."""
    return [str(p) for p in folder.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]


@contextlib.contextmanager
def stopped_before(name: str) -> Iterator[None]:
    """Ctrl-C at the start of one stage."""
    stage = next(cls for cls in chain() if cls.name == name)
    with mock.patch.object(stage, "run", side_effect=KeyboardInterrupt):
        yield


def pretended(jobs: Sequence[Job], *, threads: int, ms: float = 1.0, **_: object) -> Measured:
    """In place of `time_artifacts`: every artifact takes `ms`."""
    ns = np.full((10, 5), round(1e6 * ms))
    timings = [
        Timing(artifact, runtime, artifact.threads or threads, ns, load_s=0.1, warmup=1, peak_rss_bytes=1 << 20)
        for artifact, runtime in jobs
    ]
    return Measured(tuple(timings), timings[0], floor=0.01, settled=True)


@contextlib.contextmanager
def known_rates(rates: Rates | None = None) -> Iterator[None]:
    """A machine whose kernels nobody has to time; the formula's rates where None."""
    fitted = KernelRates(rates or Rates(), 0.05, 0.1, 36, 9.0)
    with using(replace(current_clock(), kernel_rates=lambda *_, **__: fitted)):
        yield


@contextlib.contextmanager
def pretended_timings() -> Iterator[None]:
    """A build without timing workers, for tests of everything else."""
    with using(replace(current_clock(), artifacts=pretended)):
        yield
