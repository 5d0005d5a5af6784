"""Class names, metrics, variables and files of a build that are not what they should be: errors, never tracebacks."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deploypruner.build import pipeline
from deploypruner.build.folder import BuildFolder
from deploypruner.build.metric import own_metric
from deploypruner.build.stage import chain
from deploypruner.build.state import Build, Given
from deploypruner.caches import default_folder
from deploypruner.cli import bench
from deploypruner.errors import InputError, said_by
from deploypruner.latency.cache import Cache
from deploypruner.measure.files import detect_precision
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.progress import SilentProgress
from deploypruner.recipe import Recipe
from deploypruner.records import Setting
from deploypruner.scratch import scratch
from deploypruner.sources.classes import as_names, read_classes


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError


def leave(outputs: object, labels: object) -> float:
    raise SystemExit(7)


def unspeakable(outputs: object, labels: object) -> float:
    raise Unspeakable


class NoDirection:
    __name__ = 3

    @property
    def higher_is_better(self) -> bool:
        raise KeyError("x")

    def __call__(self, outputs: object, labels: object) -> float:
        return 1.0


def test_class_names_are_read_from_files_alone(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a named pipe, not a file"):
        read_classes(tmp_path / "pipe")
    with pytest.raises(InputError, match="'/dev/zero' is a"):
        read_classes(Path("/dev/zero"))
    (tmp_path / "names").write_text(json.dumps({"0": "cat", "9" * 5000: "dog"}))
    with pytest.raises(InputError, match="is no list of class names"):
        read_classes(tmp_path / "names")
    assert as_names({"²": "cat"}) is None
    (tmp_path / "names").write_bytes("\ufeffcat\ndog\n".encode())
    assert read_classes(tmp_path / "names") == ("cat", "dog")


@pytest.mark.parametrize(("function", "said"), [(leave, "raised SystemExit: 7"), (unspeakable, "raised Unspeakable")])
def test_a_metric_that_ends_the_program_or_cannot_say_why_is_an_error(function, said):
    with pytest.raises(InputError, match=said):
        OwnMetric(function, "own")([np.zeros(3)], None)
    assert said_by(Unspeakable()) == "Unspeakable"


def test_a_module_that_raises_where_a_name_is_looked_up_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "moody.py").write_text("def __getattr__(name): raise RuntimeError(name)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="looking up 'metric' in 'moody' raised RuntimeError: metric"):
        own_metric("moody:metric")


def test_a_module_that_ends_the_program_is_an_error_and_no_exit_code_of_ours(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="importing 'leaving' raised SystemExit: 3"):
        own_metric("leaving:metric")


def test_a_metric_without_a_direction_is_an_error_and_its_name_is_text():
    found = own_metric(NoDirection())
    assert found is not None
    assert found.name == "3"
    with pytest.raises(InputError, match="'higher_is_better' of metric '3' raised KeyError"):
        assert found.metric


def test_a_cache_folder_that_cannot_be_is_a_remark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEPLOYPRUNER_CACHE", "a" * 300)
    assert "is damaged or of another device" in Cache(None, Setting("onnxruntime", "fp32", 1)).remark
    monkeypatch.delenv("DEPLOYPRUNER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: pytest.fail("RuntimeError where there is no home"))
    assert default_folder().name == "deploypruner"


def test_what_a_stage_saved_and_cannot_read_again_is_an_error(tmp_path: Path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "quantize.json").write_text('{"quantization": true}')
    build = Build(Recipe(), BuildFolder(tmp_path), "compile", Given(), SilentProgress())
    quantize = next(stage for stage in chain() if stage.name == "quantize")
    with pytest.raises(InputError, match=f"what 'quantize' saved in {tmp_path} cannot be read"):
        pipeline._restored(quantize(), build)


def test_nowhere_for_temporary_files_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(InputError, match="no folder for temporary files can be written to"), scratch():
        pass


@pytest.mark.parametrize("inputs", [7, ["x"], [{"open_axes": 1}], [{"open_axes": 1, "example": ["a", None]}]])
def test_a_manifest_that_says_nonsense_of_its_inputs_gives_no_shapes(tmp_path: Path, inputs):
    (tmp_path / "manifest.json").write_text(json.dumps({"deploypruner": "build", "sha256": {}, "inputs": inputs}))
    assert bench._example_shapes([tmp_path / "model.onnx"]) == {}


def test_an_ir_in_an_encoding_that_nobody_knows_is_an_error(tmp_path: Path):
    (tmp_path / "m.xml").write_text('<?xml version="1.0" encoding="nothing"?><net/>')
    with pytest.raises(InputError, match="is not a readable OpenVINO IR"):
        detect_precision(tmp_path / "m.xml")
