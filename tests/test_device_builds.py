"""Builds for another machine: what is in them for it, and that it loads there with plain runtimes."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploypruner.device.described import Address, DescribedTarget
from deploypruner.onnx_file import write_onnx
from deploypruner.report import read_report
from deploypruner.report.on_device import device_text
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse import library
from deploypruner.sparse.convert import sparsify
from tests.builds import copy_of_finished, run_cli
from tests.qdq import chain
from tests.sshd import WHY_NOT, Sshd

pytestmark = pytest.mark.slow
needs_sshd = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

_RUN = """
import numpy
{lines}
import importlib.util
assert not any(importlib.util.find_spec(name) for name in ("torch", "onnx", "deploypruner"))
found = outputs.values() if hasattr(outputs, "values") else outputs
print([list(array.shape) for array in found], all(numpy.isfinite(array).all() for array in found))
"""
_NEEDED = ("numpy", "openvino", "onnxruntime")


def bare(folder: Path) -> Path:
    """A place for modules with numpy and the runtimes alone."""
    found = folder / "modules"
    found.mkdir()
    for place in site.getsitepackages():
        for entry in Path(place).iterdir():
            if entry.name.partition(".")[0] in _NEEDED or entry.name.partition("-")[0] in _NEEDED:
                (found / entry.name).symlink_to(entry)
    return found


def lines_of(text: str) -> list[str]:
    """What the third step says."""
    after = text.partition("in Python:")[2]
    return [line.strip() for line in after.splitlines() if line.strip()]


def loaded(folder: Path, text: str, feed: str, tmp_path: Path) -> str:
    """What a fresh Python prints that runs the lines in the folder."""
    lines = lines_of(text)
    lines.insert(-1, feed)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bare(tmp_path))}
    command = [sys.executable, "-S", "-c", _RUN.format(lines="\n".join(lines))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def copied(text: str, build: Path, to: Path) -> Path:
    """The folder there, once the first step is done."""
    (line,) = [line.split() for line in text.splitlines() if line.strip().startswith("scp ")]
    to.mkdir()
    for name in line[3:-1]:
        (to / name).write_bytes((build / name).read_bytes())
    return to


@needs_sshd
def test_a_build_timed_there_says_how_it_is_loaded_there_and_that_works(device: Sshd, tmp_path: Path) -> None:
    build = copy_of_finished(tmp_path)
    outcome = run_cli("measure", str(build), "--target", "pi", "--seconds", "1")
    assert outcome.code in (0, 3), outcome.err
    assert "device.txt has what to copy to pi" in outcome.out
    text = (build / "device.txt").read_text()
    deploy = read_report(build).deploy
    assert f"{sys.executable} -m pip install numpy {deploy['runtime']}==" in text
    assert f"scp -P {device.port} {' '.join(deploy['files'])} " in text
    assert text.count("\n    #") >= 1
    there = copied(text, build, tmp_path / "there")
    (entry,) = deploy["inputs"]
    shape = [1 if isinstance(size, str) else size for size in entry["shape"]]
    name = next(line for line in lines_of(text) if line.startswith("outputs")).partition(": ")[2].strip("}) ")
    said = loaded(there, text, f"{name} = numpy.zeros({shape}, {entry['dtype']!r})", tmp_path)
    assert said.endswith("True")
    # Timed here again it is for this machine.
    assert run_cli("measure", str(build), "--target", "cpu", "--seconds", "1").code in (0, 3)
    assert not (build / "device.txt").exists()


@pytest.mark.skipif(not library.is_built(), reason="the package was installed without its sparse kernels")
def test_a_sparse_file_loads_with_the_library_beside_it(tmp_path: Path) -> None:
    import openvino

    made, there = sparsify(chain(), every=True).model, tmp_path / "there"
    assert made is not None
    there.mkdir()
    file, extension = there / "model.sparse.onnx", there / library.EXTENSION
    write_onnx(made, file)
    extension.write_bytes(library.path_of(library.EXTENSION).read_bytes())
    report = read_report(copy_of_finished(tmp_path))
    entry = report.deploy["inputs"][0] | {"name": "x", "shape": [1, 8, 6, 6], "mean": None, "range": None}
    deploy = report.deploy | {
        "file": file.name,
        "files": [file.name, extension.name],
        "runtime": "openvino",
        "version": openvino.__version__.partition("-")[0],
        "inputs": [entry],
        "load": list(OpenVino.usage(file, ["x"], threads=1, extension=extension)),
    }
    target = DescribedTarget("pi", Address("ssh", "fe80::1", "me"))
    text = device_text(replace(report, deploy=deploy), target)
    assert f"scp {file.name} {extension.name} 'me@[fe80::1]:FOLDER/'" in text
    assert f"python3 -m pip install numpy openvino=={deploy['version']}" in text
    assert loaded(there, text, "x = numpy.ones((1, 8, 6, 6), 'float32')", tmp_path).endswith("True")


def test_a_build_without_a_file_to_ship_has_no_such_page(tmp_path: Path) -> None:
    report = read_report(copy_of_finished(tmp_path))
    assert device_text(replace(report, deploy={}), DescribedTarget("pi", Address("ssh", "b"))) == ""
