"""More of what the fuzzer tries: OpenVINO files, a build's files, class names, user code, the environment."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

import deploypruner as dp
from deploypruner.build.folder import BuildFolder
from deploypruner.build.metric import own_metric
from deploypruner.build.stage import chain
from deploypruner.cli import bench
from deploypruner.export.to_openvino import write_ir
from deploypruner.latency.cache import Cache
from deploypruner.measure import trial
from deploypruner.measure.quality import evaluate
from deploypruner.records import Setting
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.scratch import scratch
from deploypruner.sources.arrays import from_arrays
from deploypruner.sources.classes import fit_classes, read_classes
from deploypruner.sparse.library import active_target
from deploypruner.terminal import escaped
from tests.builds import tiny
from tests.fuzz_cases import (
    NUMBERS,
    TEXTS,
    Random,
    Workshop,
    api,
    command,
    damaged_text,
    edited_copy,
    json_text,
    mutated,
)
from tests.fuzzing import Case

_COMPILE = ("--macs", "0.6", "--step", "1", "--epochs", "0", "--seconds", "1", "--runtime", "onnxruntime")
# Stages that do no work of minutes: a resumed build runs these, and ends where another one would have to run again.
_QUICK = ("load", "trace", "remove")


def ir(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """An OpenVINO model with damage in its .xml, its .bin or both."""
    good = workshop.root / "small.xml"
    if not good.is_file():
        write_ir(workshop.root / "small.onnx", good)
    text, weights = good.read_text(), good.with_suffix(".bin").read_bytes()
    kind = rng.randrange(10)
    if kind < 5:
        for _ in range(rng.choice((1, 1, 2, 4))):
            text = _edited_xml(rng, text)
    elif kind < 7:
        weights = rng.choice((b"", weights[:-1], weights[:7], weights * 2, mutated(rng, weights)))
    held = text.encode(errors="replace") if kind < 8 else damaged_text(rng, text)
    (folder / "m.xml").write_bytes(held)
    bin_file = folder / "m.bin"
    match rng.randrange(12):
        case 0:
            pass  # there is none
        case 1:
            os.mkfifo(bin_file)
        case 2:
            bin_file.symlink_to(rng.choice(("/dev/zero", "m.bin", "/dev/null", "m.xml")))
        case _:
            bin_file.write_bytes(weights)
    return Case(api(lambda: trial.check_runs(Path("m.xml"), ["openvino"])), "open in openvino")


def _edited_xml(rng: Random, text: str) -> str:
    places = [found.span(1) for found in re.finditer(r'="([^"]*)"', text)]
    start, end = rng.choice(places)
    match rng.randrange(8):
        case 0:
            lines = text.splitlines()
            del lines[rng.randrange(len(lines))]
            return "\n".join(lines)
        case 1:
            bomb = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 20}">' for i in range(9))
            return f'<!DOCTYPE net [<!ENTITY a0 "aaaa">{bomb}]>' + text.partition("?>")[2].replace("Model0", "&a9;")
        case 2:
            name = rng.choice(("utf-16", "nothing", "utf-7", "latin-1", "cp037"))
            return f'<?xml version="1.0" encoding="{name}"?>' + text.partition("?>")[2]
        case 3:
            outside = rng.choice(("file:///etc/passwd", "file:///dev/zero", "http://localhost:9/x"))
            return f'<!DOCTYPE net [<!ENTITY a SYSTEM "{outside}">]>{text.partition("?>")[2]}'
        case 4:
            other = rng.choice(places)
            return text[:start] + text[slice(*other)] + text[end:]
        case _:
            value = rng.choice(
                (*NUMBERS[:12], "4294967296", "-9223372036854775808", "x", "", "f16,u8", "Convolution")
            )
            return text[:start] + value + text[end:]


# ---------------------------------------------------------------------- what a build left behind


def _killed_build(workshop: Workshop) -> Path:
    """A build that ended before it measured, as a killed one leaves it, and a manifest over what it wrote."""
    root = workshop.root / "killed"
    if root.is_dir():
        return root
    child = os.fork()
    if child == 0:
        os.chdir(workshop.root)
        for number in (1, 2):
            os.dup2(os.open("killed.log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), number)
        _stop_at({"measure"})
        try:
            command("compile", "tiny.pt2", "--data", "labelled.npz", *_COMPILE, "--out", "killed")()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    folder = BuildFolder(root)
    folder.prepare()
    folder.write_manifest({"inputs": [{"name": "x", "example": [1, 3, 16, 16], "open_axes": [{"axis": 2}]}]})
    folder.release()
    return root


def _stop_at(names: set[str]) -> None:
    def stop(self: object, build: object) -> Any:
        raise SystemExit(0)

    for stage in chain():
        if stage.name in names:
            stage.run = stop  # type: ignore[method-assign]


def build(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """A file of a build edited or damaged, mostly with checksums that fit; then resumed, restored or read."""
    shutil.copytree(_killed_build(workshop), folder / "build")
    (folder / "labelled.npz").write_bytes(workshop.arrays)
    (folder / "tiny.pt2").write_bytes(workshop.program)
    root = folder / "build"
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    documents = [path for path in files if path.suffix == ".json"]
    path = rng.choice(documents) if rng.random() < 0.7 else rng.choice(files)
    if path.suffix == ".json" and rng.random() < 0.85:
        path.write_bytes(json_text(rng, json.loads(path.read_bytes())))
    else:
        path.write_bytes(mutated(rng, path.read_bytes()))
    if rng.random() < 0.8:
        _believe(root, path)
    match rng.randrange(8):
        case 0:
            return Case(api(lambda: dp.restore(tiny(), "build")), f"restore: {path.name}")
        case 1:
            return Case(api(lambda: bench._example_shapes([Path("build/model.fp32.onnx")])), f"bench: {path.name}")
        case 2:
            return Case(command("report", "build"), f"report: {path.name}")
        case _:
            pass
    arguments = ("compile", "tiny.pt2", "--data", "labelled.npz", *_COMPILE, "--out", "build", "--resume")

    def resumed() -> None:
        _stop_at({stage.name for stage in chain()} - set(_QUICK))
        command(*arguments)()

    # The model and the data are named as the build was told, from its folder.
    return Case(resumed, f"resume: {path.name}")


def _believe(root: Path, changed: Path) -> None:
    """Records that hold the checksum of what was changed now hold that of what it is."""
    name = str(changed.relative_to(root))
    for record in (root / "stages" / "finished.json", root / "manifest.json"):
        if record == changed or not record.is_file():
            continue
        digest = sha256(changed.read_bytes()).hexdigest()
        text = record.read_text()
        found = re.sub(rf'("{re.escape(name)}": )"[0-9a-f]*"', rf'\1"{digest}"', text)
        record.write_text(found)


# ---------------------------------------------------------------------- class names


def classes(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """A file with class names: text, JSON, neither, or no file at all."""
    path = folder / "names"
    names = ["cat", "dog", "n01440764, tench", "bird"]
    good: list[Any] = [names, {str(i): name for i, name in enumerate(names)}, {n: i for i, n in enumerate(names)}]
    match rng.randrange(9):
        case 0:
            path.write_bytes(json_text(rng, rng.choice(good)))
        case 1:
            path.write_bytes(json.dumps(edited_copy(rng, rng.choice(good))).encode(errors="replace"))
        case 2:
            path.write_bytes(damaged_text(rng, "\n".join(names)))
        case 3:
            lines = [rng.choice((*TEXTS[:20], *names)) for _ in range(rng.choice((0, 1, 3, 4, 5)))]
            path.write_bytes("\n".join(lines).encode(errors="replace"))
        case 4:
            odd = {"0": names[0], **{rng.choice(NUMBERS): name for name in names}}
            path.write_bytes(json.dumps(odd).encode(errors="replace"))
        case 5:
            path.symlink_to(rng.choice(("/dev/zero", "/dev/null", "names", "/proc/self/mem", "nothing", ".")))
        case 6:
            os.mkfifo(path)
        case 7:
            path.write_bytes(rng.choice((b"\xff\xfe\0", b"", b"[" * 100_000, b"a\n" * 200_000, b"\xef\xbb\xbfcat\n")))
        case _:
            path.mkdir() if rng.random() < 0.3 else path.write_bytes(rng.randbytes(64))

    def fitted() -> None:
        found = from_arrays({"x": np.zeros((8, 2)), "y": np.arange(8) % 4}, dp_settings(), name="data")
        fit_classes(dataclass_with(found, ("bird", "cat", "dog", "tench")), 4, asked=read_classes(path))

    if rng.random() < 0.1:  # the command as a whole, which takes longer
        words = ["--data", str(workshop.root / "labelled.npz"), *_COMPILE, "--out", "taken"]
        (folder / "taken").write_text("a file")
        return Case(command("compile", str(workshop.root / "tiny.pt2"), "--classes", "names", *words), "compile")
    return Case(api(fitted), "classes")


def dp_settings() -> Any:
    """The defaults."""
    from deploypruner.recipe.data import DataSettings

    return DataSettings()


def dataclass_with(data: Any, names: tuple[str, ...]) -> Any:
    """The data with the names of class folders."""
    from dataclasses import replace

    return replace(data, classes=names)


# ---------------------------------------------------------------------- the user's metric

_RETURNS = (
    *("0.5", "float('nan')", "float('inf')", "'high'", "None", "[]", "[1, 2]", "np.zeros(3)", "np.zeros(1)", "1j"),
    *("torch.tensor(0.5)", "torch.ones(2)", "10**400", "-1", "object()", "metric", "outputs", "labels", "{}", "b'1'"),
    *("np.array('x')", "True", "'0.5'", "type('X', (), {'__float__': lambda self: 'no'})()"),
)
_RAISES = (
    *("raise ValueError", "raise ValueError('\\x1b[31m')", "raise KeyError('a')", "1 / 0", "raise SystemExit(7)"),
    *("raise MemoryError", "raise StopIteration", "import nothing_like_this", "f()"),
    *("raise RecursionError", "exit()", "raise UnicodeDecodeError('u', b'', 0, 1, '')"),
    *("outputs += 1", "outputs[...] = 0; return 1.0", "class E(Exception): __str__ = None\n    raise E()"),
    *("class F(Exception):\n        def __str__(self): raise ValueError\n    raise F()", "raise OSError(28, 'full')"),
)
_SIGNATURES = ("outputs, labels", "outputs", "", "*args", "outputs, labels, more", "outputs, *, labels", "a, b=None")
_MODULES = (
    *("metric = 3\n", "", "def metric(outputs, labels)\n", "raise ValueError('no')\n", "\0", "import nothing_here\n"),
    *("raise SystemExit(3)\n", "metric = None\n", "class metric: pass\n", "metric = len\n", "metric = float\n"),
    *("import sys\nsys.modules[__name__] = 7\n", "def __getattr__(name): raise RuntimeError(name)\n", "\xff"),
    *("metric = lambda o, l: 1.0\nmetric.higher_is_better = 'x'\n", "from . import x\n"),
    *("class M:\n    __name__ = 3\n    def __call__(self, o, l): return 1.0\nmetric = M()\n", "metric = metric\n"),
    "class M:\n    higher_is_better = property(lambda s: {}[0])\n    def __call__(s, *a): return 1\nmetric = M()\n",
)
_NAMES = ("own:metric", "own:metric", "own:metric", "own:metric", "own", "own:", ":", "own:other", "own.py:metric")


def metric(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """A module with a metric that is none, raises, returns nonsense, or a name that leads nowhere."""
    header = "import numpy as np\nimport torch\n"
    if rng.random() < 0.25:
        text = rng.choice(_MODULES)
    elif rng.random() < 0.5:
        text = f"{header}def metric({rng.choice(_SIGNATURES)}):\n    return {rng.choice(_RETURNS)}\n"
    else:
        text = f"{header}def metric({rng.choice(_SIGNATURES[:1] * 3 + _SIGNATURES)}):\n    {rng.choice(_RAISES)}\n"
    source = mutated(rng, text.encode()) if rng.random() < 0.1 and text else text.encode("latin-1")
    (folder / "own.py").write_bytes(source)
    name = rng.choice(_NAMES) if rng.random() < 0.8 else rng.choice(TEXTS)
    labels = rng.choice((None, np.arange(6) % 4, np.zeros((6, 2))))

    def judged() -> None:
        sys.path.insert(0, os.getcwd())
        session = OnnxRuntime().open(workshop.root / "small.onnx")
        x = np.random.default_rng(0).standard_normal((6, 4, 5, 5)).astype(np.float32)
        found = own_metric(name)
        sys.stdout.write(escaped(repr(evaluate(session, [([x], labels)], metric=found))))

    return Case(api(judged), f"{name}: {text!r}")


# ---------------------------------------------------------------------- the environment

_VARIABLES = (
    *("DEPLOYPRUNER_TARGET", "DEPLOYPRUNER_CACHE", "XDG_CACHE_HOME", "HOME", "TMPDIR", "NO_COLOR", "TERM", "COLUMNS"),
    *("PYTHONPATH", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LANG"),
    *("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LINES", "PATH", "LC_ALL"),
)
_PLACES = ("taken", "pipe", "loop", "nothing/below", "/dev/null", "/proc/self", "a" * 300, "/" * 5000, ".", "avx2")


def surroundings(rng: Random, workshop: Workshop, folder: Path) -> Case:
    """Variables that we or our workers read, with values that nobody meant."""
    (folder / "taken").write_text("a file")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    texts = [text for text in (*TEXTS, *NUMBERS, *_PLACES) if "\0" not in text]
    changed = {rng.choice(_VARIABLES[: rng.choice((5, 8, len(_VARIABLES)))]): rng.choice(texts) for _ in range(2)}
    if rng.random() < 0.05:
        changed["HOME"] = ""
    which = rng.randrange(8)

    def run() -> None:
        import tempfile

        for name, value in changed.items():
            os.environ[name] = value
        if changed.get("HOME") == "":
            del os.environ["HOME"]
        tempfile.tempdir = None
        _calls(workshop)[which]()

    return Case(run, f"{which} with {changed!r}")


def _calls(workshop: Workshop) -> list[Callable[[], None]]:
    def cached() -> None:
        cache = Cache(None, Setting("onnxruntime", "fp32", 1))
        cache.write("a", (), cache.model("b")[1] if cache.model("b") else _no_quality(), cache.points)
        sys.stdout.write(escaped(cache.remark))

    def scratched() -> None:
        with scratch() as folder:
            sys.stdout.write(escaped(str(folder)))

    model = str(workshop.root / "tiny.pt2")
    return [
        api(cached),
        api(cached),
        api(scratched),
        api(active_target),
        command("list", "targets"),
        command("plan", model),
        command("sparsify", str(workshop.root / "small.onnx"), "--seconds", "nan"),
        api(lambda: trial.check_runs(workshop.root / "small.onnx", ["onnxruntime"])),
    ]


def _no_quality() -> Any:
    from dataclasses import MISSING, fields

    from deploypruner.latency.quality import LatencyQuality

    needed = [field.name for field in fields(LatencyQuality) if field.default is MISSING]
    return LatencyQuality(**{name: () if name == "remarks" else 0 for name in needed})


KINDS: dict[str, Callable[[random.Random, Workshop, Path], Case]] = {
    "ir": ir,
    "build": build,
    "classes": classes,
    "metric": metric,
    "environment": surroundings,
}
