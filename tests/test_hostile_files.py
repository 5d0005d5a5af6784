"""Files that would fill the memory, wait for ever or crash a parser: each refused, in words, before it can."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.measure import trial
from deploypruner.measure.files import check_external, describe_file
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.process import Worker
from deploypruner.measure.trial import check_runs
from deploypruner.recipe.data import DataSettings
from deploypruner.records import TensorSpec
from deploypruner.report import from_json, to_json
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.sources.data import load_data
from deploypruner.sources.pixels import decode, image_size
from deploypruner.sources.room import check_room
from deploypruner.sources.state_dict import load_weights, read_weights
from deploypruner.sources.torch_file import Kind, kind_of
from tests.builds import run_cli, tiny
from tests.fuzz_cases import small_onnx
from tests.test_report_examples import EXAMPLES

pytestmark = pytest.mark.slow

SETTINGS = DataSettings(size=(16, 16))


def png(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, format="PNG")
    return path


# ---------------------------------------------------------------------- images


def read_all(folder: Path) -> tuple[int, str]:
    """Decode every image of a folder of images; how many there were, and what was remarked."""
    data = load_data(str(folder), SETTINGS)
    read = sum(len(inputs[0]) for split in (data.train, data.val) for inputs, _ in split.epoch(batch_size=8))
    return read, "\n".join(data.remarks)


def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path):
    for name in ("0.png", "2.png", "3.png"):
        png(tmp_path / name)
    os.mkfifo(tmp_path / "1.png")
    # Without anybody at its other end, opening the pipe would wait for ever; the alarm ends that.
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waited for the pipe"))
    signal.alarm(20)
    try:
        read, remarks = read_all(tmp_path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert read == 3
    assert "files that are no images it reads (1 no regular files: 1.png) not used" in remarks


@pytest.mark.parametrize("target", ["nothing", "/dev/zero", "1.png"])
def test_an_image_that_is_a_link_to_nothing_or_to_a_device_is_named(tmp_path, target):
    for name in ("0.png", "2.png", "3.png"):
        png(tmp_path / name)
    (tmp_path / "1.png").symlink_to(target)
    read, remarks = read_all(tmp_path)
    assert read == 3
    assert "(1 no regular files: 1.png) not used" in remarks


def test_class_folders_that_link_to_their_parent_are_read_once(tmp_path):
    for label in ("a", "b"):
        for number in range(3):
            png(tmp_path / label / f"{number}.png")
        (tmp_path / label / "again").symlink_to(tmp_path / label)
    data = load_data(str(tmp_path), SETTINGS)
    assert (data.train.samples or 0) + (data.val.samples or 0) == 6


@pytest.mark.parametrize("form", ["GIF", "PPM", "ICO", "TGA", "EPS"])
def test_only_the_formats_that_are_promised_are_opened(tmp_path, form):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png", format=form)
    with pytest.raises(InputError, match="it is none of JPEG, PNG, BMP, WEBP, TIFF, or damaged"):
        image_size(tmp_path / "0.png")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_an_image_is_what_it_holds_whatever_its_name_says(tmp_path, form):
    Image.new("RGB", (16, 12)).save(tmp_path / "0.png", format=form)
    assert image_size(tmp_path / "0.png") == (12, 16)


def test_a_few_bytes_that_say_they_are_a_large_image_are_refused_by_their_header(tmp_path):
    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    head = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 6, 0, 0, 0)
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="12000x12000 are more than 89478485 pixels"):
        image_size(tmp_path / "0.png")


def test_an_image_so_narrow_that_its_crop_would_fill_the_memory_is_named(tmp_path):
    path = png(tmp_path / "0.png", (60_000, 1))
    with pytest.raises(InputError, match="60000x1 is too narrow to be cropped to 224x224"):
        decode(path, DataSettings(size=(224, 224)))


# ---------------------------------------------------------------------- arrays and weights


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }",
        "{'descr': '<f4', 'shape': ((((",
        "(" * 900,
    ],
)
def test_an_array_whose_header_lies_is_damaged(tmp_path, header):
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0" * 64
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", npy)
    with pytest.raises(InputError, match=r"'x' of '.*' is truncated or corrupt: "):
        load_data(str(tmp_path / "x.npz"))


def test_an_npz_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("deploypruner.reading._SMALL_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((3000, 1000), np.int8))
    with pytest.raises(InputError, match=r"would unpack to 0\.003 GB"):
        load_data(str(tmp_path / "x.npz"))


class Allocates:
    """Unpickled, it would be 4 GiB of zeros."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (1 << 32,)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_ask_for_memory_of_their_own_are_refused_unread(tmp_path, zipped):
    path = tmp_path / "w.pt"
    torch.save({**tiny().state_dict(), "extra": Allocates()}, path, _use_new_zipfile_serialization=zipped)
    assert kind_of(path) is Kind.ALLOCATES
    with pytest.raises(InputError, match="asks for memory of its own"):
        read_weights(path)


def test_weights_that_cannot_be_copied_are_named(tmp_path):
    state = tiny().state_dict()
    state["stem.weight"] = torch.empty(state["stem.weight"].shape, device="meta")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match="cannot be copied into the model"):
        load_weights(tiny(), tmp_path / "w.pt")


# ---------------------------------------------------------------------- shapes


def test_a_shape_whose_layers_no_machine_could_hold_is_refused_without_running(tmp_path):
    wide = nn.Sequential(nn.Conv2d(3, 4096, 3, padding=1), nn.ReLU()).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"one layer of the model makes 4\.19e\+03 GB"):
        check_room(wide, (torch.empty(1, 3, 16_000, 16_000),))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000
    check_room(wide, (torch.zeros(1, 3, 32, 32),))


@pytest.mark.parametrize("command", ["plan", "compile"])
def test_a_shape_beyond_all_memory_is_refused_by_its_numbers(command):
    outcome = run_cli(command, "factories:tiny", "--input-shape", "1,3,99999999,99999999")
    outcome.assert_error(2, "--input-shape 1,3,99999999,99999999 has 3e+16 numbers")


def test_a_file_that_declares_such_an_input_is_not_fed():
    with pytest.raises(RecipeError, match="input 'x' of shape 1,4,1099511627776,5 has"):
        random_feeds([TensorSpec("x", (None, 4, 1 << 40, 5), "float32")])


# ---------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("place", ["../w.bin", "sub/../../w.bin", "/etc/passwd", "..", "sub/w.bin", "w.bin"])
def test_external_weights_outside_of_the_folder_of_a_model_are_refused(place, tmp_path):
    model = small_onnx(zeros=False)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.onnx").write_bytes(model.SerializeToString())
    if place.endswith("w.bin") and ".." not in place:
        assert check_external(tmp_path / "models" / "m.onnx") is None
        return
    with pytest.raises(InputError, match="names weights outside of its folder"):
        check_external(tmp_path / "models" / "m.onnx")


def test_a_pipe_in_place_of_external_weights_is_named(tmp_path):
    model = small_onnx(zeros=False)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="pipe")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    os.mkfifo(tmp_path / "pipe")
    for look in (check_external, describe_file):
        with pytest.raises(InputError, match=r"weights '.*pipe' is a named pipe"):
            look(tmp_path / "m.onnx")


def test_a_model_that_loads_and_does_not_run_is_an_input_error(tmp_path):
    model = small_onnx(zeros=False)
    model.graph.input[0].type.tensor_type.shape.dim[1].Clear()
    onnx.save(model, tmp_path / "m.onnx")
    session = OnnxRuntime().open(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"ONNX Runtime cannot run the model on \[1, 7, 5, 5\]: [\s\S]*hint: "):
        session.run([np.zeros((1, 7, 5, 5), np.float32)])


def test_onnx_weights_that_are_not_finite_are_named_before_anything_is_timed(tmp_path):
    model = small_onnx(zeros=True)
    model.graph.initializer[1].raw_data = b"\xff" * len(model.graph.initializer[1].raw_data)
    onnx.save(model, tmp_path / "m.onnx")
    outcome = run_cli("sparsify", "m.onnx", folder=tmp_path)
    outcome.assert_error(2, "'d' of 'm.onnx' holds NaN or Inf", "earlier checkpoint")
    assert not (tmp_path / "sparse").exists()


def test_a_file_that_ends_the_process_of_its_runtime_is_an_input_error(tmp_path, monkeypatch):
    onnx.save(small_onnx(zeros=False), tmp_path / "m.onnx")
    check_runs(tmp_path / "m.onnx", ["onnxruntime"])
    crash = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(trial, "Worker", partial(Worker, command=crash))
    with pytest.raises(InputError, match=r"cannot run 'm\.onnx' on onnxruntime: the worker process ended .*SIGSEGV"):
        check_runs(tmp_path / "m.onnx", ["onnxruntime"])


# ---------------------------------------------------------------------- reports


def changed(name: str, *path: object, to: object) -> dict[str, object]:
    """An example report as JSON with one value replaced."""
    document = json.loads(json.dumps(to_json(EXAMPLES[name])))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = to
    return document


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("rows",), []),
        (("rows", 0, "median_ms"), -1.0),
        (("rows", 0, "bytes"), -5),
        (("budget", "pool"), [{"objective": "x"}]),
        (("budget", "dropped"), [["a"]]),
        (("budget", "quality"), {"kept": False}),
        (("budget", "setting"), {"threads": 1}),
        (("loop",), [{"predicted_ms": "0.4"}]),
        (("loop",), [{"met": True}, {"importance": [1]}]),
        (("sparse",), {"chosen": 0}),
        (("sparse",), {"chosen": 2, "layers": [{"name": "a"}], "target": "avx2"}),
    ],
)
def test_a_section_of_a_report_that_was_edited_is_named(path, to):
    with pytest.raises(InputError, match=f"is not a valid report: ({path[0]}|it has no rows)"):
        from_json(changed(next(iter(EXAMPLES)), *path, to=to))


def test_every_example_of_a_report_is_read_again():
    for report in EXAMPLES.values():
        assert to_json(from_json(json.loads(json.dumps(to_json(report))))) == to_json(report)
