"""Every command and every Python snippet of README and docs/ runs as it is printed, in order, page by page."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import deploypruner as dp
from deploypruner.cli.main import cli
from deploypruner.device.described import described
from deploypruner.export.to_onnx import Onnx
from deploypruner.latency.clock import current_clock, using
from deploypruner.measure import Job, Measured
from deploypruner.recipe.reading import read_recipe
from deploypruner.records import Timing
from deploypruner.sparse import library
from deploypruner.sparsity.patterns import make_pattern
from tests.builds import CLASSES, IMAGE, Tiny, run_cli, samples, save_program, tiny
from tests.staircase import Staircase
from tests.test_learn_time import Model
from tests.test_sparse_stage import priced

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/guide.md", "docs/sparse.md", "docs/migrating.md", "docs/how-it-works.md")
# What is not run here, and why. A new snippet runs unless it is named here.
NOT_RUN = {
    "make demo": "takes two minutes; tests/test_demo_data.py and tests/test_cli.py have its parts",
    "make test": "runs this",
    "deploypruner frontier model.pt2 --data photos/ --speedups 1.25,1.5,2,3": "tests/test_frontier.py has it",
    "deploypruner frontier model.pt2 --speedups 1.5,2": "the same",
    "deploypruner sweep model.pt2 --data photos/ --macs 0.5 --samples 128 --workers 2": "tests/test_sweep.py has it",
    "deploypruner sweep model.pt2 --macs 0.5": "the same",
    "deploypruner sweep --status sweep/": "the same",
    "deploypruner compile --recipe sweep/winner.toml": "the same",
    "deploypruner bench build/ --target ssh://pi@raspberrypi.local": "tests/test_device_ssh.py has a machine",
    "deploypruner bench build/ --target pi": "the same",
    "deploypruner compile model.pt2 --target ssh://pi@host": "the same",
    "deploypruner compile model.pt2 --data photos/ --latency 5ms --target pi": "the same",
    "deploypruner plan model.pt2 --time --target pi": "the same",
    "deploypruner sparsify model.onnx --target pi": "the same",
    "deploypruner target check pi": "the same",
    "deploypruner target clean pi": "the same",
    "python -m pip install .": "changes the environment",
    "pip install 'deploypruner[distributed]'": "changes the environment",
    "deploypruner validate build/ --max-latency 5ms --min-accuracy 0.92": "a network of random weights keeps no such "
    "accuracy; tests/test_compare_validate.py has it",
}
# What the pages write for what the reader has.
STANDS_FOR = {
    "MODEL": "model.pt2",
    "DATA": "photos/",
    "A": "build/model.fp32.onnx",
    "B": "build/model.int8.onnx",
    "BUILD": "build/",
}
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
STARTS = r"(?:deploypruner|make|python|pip)\s"


@dataclass(frozen=True)
class Snippet:
    """A piece of a page that can be run: "python", "toml" or "shell"."""

    kind: str
    text: str
    line: int


def snippets(page: str) -> list[Snippet]:
    """Fenced blocks, indented command lines, and code in the text that is a command or a call of ours."""
    text = (ROOT / page).read_text()
    found = [(m.start(), m[1], m[2]) for m in FENCED.finditer(text) if m[1]]
    blank = FENCED.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    found += [(m.start(), "shell", m[1]) for m in re.finditer(rf"^ {{4}}({STARTS}.*)$", blank, re.MULTILINE)]
    for kind, form in (("shell", rf"`({STARTS}[^`]*)`"), ("python", r"`(dp\.\w+\([^`]*)`")):
        found += [(m.start(), kind, " ".join(m[1].split())) for m in re.finditer(form, blank)]
    return [Snippet(kind, body, text.count("\n", 0, start) + 1) for start, kind, body in sorted(found)]


def commands(printed: str) -> list[str]:
    """The command lines that one printed line stands for: every alternative, with everything in brackets."""
    line = re.split(r"\s+#|\s{2,}(?![\[(])", printed.strip())[0]
    line = re.sub(r"(?<!\S)\[|\](?!\S)|\.\.\.", " ", line)
    lines = [line]
    for group in re.findall(r"\([^)]*\)|\S+\|\S+", line):
        lines = [one.replace(group, choice.strip()) for one in lines for choice in group.strip("()").split("|")]
    if "COMMAND" in line:
        lines = [line.replace("COMMAND", name) for name in cli.commands]
    return [" ".join(STANDS_FOR.get(word, word) for word in one.split()) for one in lines]


def test_what_a_printed_line_stands_for():
    assert commands("deploypruner plan MODEL [--time]    # what goes") == ["deploypruner plan model.pt2 --time"]
    assert commands("deploypruner bench A [B ...]     files") == [
        "deploypruner bench build/model.fp32.onnx build/model.int8.onnx"
    ]
    assert commands("deploypruner x (--a 1 | --b 2)") == ["deploypruner x --a 1", "deploypruner x --b 2"]
    assert commands("deploypruner list a|b") == ["deploypruner list a", "deploypruner list b"]


def test_what_is_not_run_is_still_printed():
    printed = {snippet.text.strip() for page in PAGES for snippet in snippets(page)}
    printed = {re.split(r"\s{2,}", text)[0] for text in printed}
    assert set(NOT_RUN) <= printed


# ---------------------------------------------------------------------- what a reader has


def weigh(path: Path) -> int:
    """Bytes of a model."""
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin")) if file.exists())


def timed_by_size(jobs: list[Job], *, threads: int, **_: object) -> Measured:
    """In place of a clock: a model takes as long as its file is large."""
    timings = [
        Timing(a, runtime, threads, np.full((10, 5), 100 * weigh(a.path)), load_s=0.1, warmup=1, peak_rss_bytes=1)
        for a, runtime in jobs
    ]
    return Measured(tuple(timings), timings[0], floor=0.01, settled=True)


class Blocks(Model):
    """Predicts a time per block of channels."""

    facts: ClassVar[dict[str, Any]] = dict.fromkeys(("probes", "guessed", "operations"), 0) | {
        "setting": "made up",
        "error": 0.0,
        "scale": 1.0,
        "remarks": [],
    }

    def calibrated(self, keep: Any, measured_ms: float, profile: Any = None) -> Blocks:
        return Blocks(self.latency, measured_ms / self.latency.ms(keep))

    def learned(self, keep: Any, profile: Any) -> Blocks:
        return self


@contextlib.contextmanager
def made_up_times() -> Iterator[None]:
    def model(graph: Any, *_: object, **__: object) -> Blocks:
        return Blocks(Staircase(graph, block=8, base=0.005, rate=1.0), 1.0)

    def profiled(*_: object, **__: object) -> None:
        return None

    # So slow a step that `--epochs auto` is a few epochs.
    clock = replace(current_clock(), training_step=lambda *_, **__: 1200.0)
    clock = replace(clock, artifacts=timed_by_size, latency_model=model, profile=profiled)
    with using(clock), priced(sparse=1.0, dense=2.0):
        yield


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt2, model.onnx with zeros, photos/, and a finished build of them in build/."""
    folder = tmp_path_factory.mktemp("reader")
    save_program(tiny(), folder / "model.pt2", torch.zeros(2, *IMAGE))
    holed = tiny()
    with torch.no_grad():
        for layer in (holed.stem, holed.body, holed.head):
            units = make_pattern("1x4").units(layer.weight.abs())
            layer.weight *= units.mask(layer.weight.abs(), units.per_row // 5)
    Onnx().write(holed, [torch.zeros(1, *IMAGE)], folder / "model.onnx", dynamic_batch=True)
    for split, count, seed in (("train", 48, 0), ("val", 16, 1)):
        x, y = samples(count, seed)
        for number, (image, label) in enumerate(zip(x, y, strict=True)):
            path = folder / "photos" / split / f"class{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.uint8(np.clip(128 + 40 * image, 0, 255)).transpose(1, 2, 0)).save(path)
    with made_up_times():
        made = run_cli("compile", "model.pt2", "--data", "photos/", "--epochs", "1", folder=folder)
    assert made.code == 0, made.err
    return folder


def names(page: str) -> dict[str, Any]:
    """What the snippets call by name; a table of equivalents has the graph and the plan already."""
    x, y = samples(16)  # fewer than the 20 on which random weights would be found to know nothing of the labels
    loader = torch.utils.data.DataLoader(list(zip(torch.from_numpy(x), y.tolist(), strict=True)), batch_size=16)
    assert len(set(y)) == CLASSES
    found = {"model": tiny(), "example_inputs": torch.zeros(2, *IMAGE), "loader": loader, "MyModel": Tiny}
    if page == "docs/migrating.md":
        found["graph"] = dp.trace(found["model"], found["example_inputs"])
        found["plan"] = dp.prune(found["model"], found["example_inputs"], criterion="magnitude", macs=0.5).plan
    return found


@pytest.mark.skipif(not library.is_built(), reason="the package was installed without its sparse kernels")
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_of_a_page_runs(page, stock, tmp_path):
    folder = shutil.copytree(stock, tmp_path / "reader")
    namespace = names(page)
    exec("import deploypruner as dp", namespace)
    failed = []
    for snippet in snippets(page):
        place = f"{page}:{snippet.line}"
        if snippet.kind == "shell":
            for line in commands(snippet.text):
                if line in NOT_RUN:
                    continue
                # A reader follows one line of a page; here all of them follow each other.
                again = ("--overwrite",) if line.split()[1] in ("compile", "quantize", "sparsify") else ()
                with made_up_times():
                    done = run_cli(*shlex.split(line)[1:], *again, folder=folder)
                # In so small a network a budget of time may be out of reach; that, too, is an answer with a table.
                allowed = {0, 3} if re.search("--speedup|--latency|measure build", line) and done.out else {0}
                if done.code not in allowed:
                    failed.append(f"{place}: {line}: exit code {done.code}\n{done.err[-600:]}")
        elif snippet.kind == "toml":
            if "address = " in snippet.text:
                (folder / "deploypruner").mkdir()
                (folder / "deploypruner" / "targets.toml").write_text(snippet.text)
                with mock.patch.dict(os.environ, {"XDG_CONFIG_HOME": str(folder)}):
                    assert described("pi").cores == (4, 5, 6, 7), place
                continue
            (folder / "snippet.toml").write_text(snippet.text)
            assert read_recipe(folder / "snippet.toml", {}) != read_recipe(None, {}), place
        else:
            try:
                with contextlib.chdir(folder), made_up_times():
                    exec(compile(snippet.text, place, "exec"), namespace)
            except Exception as error:  # noqa: BLE001 - whatever it is, the page is wrong
                failed.append(f"{place}: {snippet.text}: {type(error).__name__}: {error}")
    assert failed == [], "\n".join(failed)


def test_a_build_folder_holds_what_the_guide_says(stock):
    text = (ROOT / "docs/guide.md").read_text()
    block = re.search(r"## What a build folder holds\n+((?: {4}.*\n)+)", text)[1]
    always, sparse = block.split("model.sparse.onnx")
    for name in re.findall(r"[\w.]+\.(?:html|json|onnx|xml|pt2|toml|safetensors)", always):
        assert (stock / "build" / name).is_file(), name
    for name in re.findall(r"(?<![.\w])(\w+)/", always):
        assert (stock / "build" / name).is_dir(), name
    assert "libdeploypruner_openvino.so" in sparse
