"""Mistakes through the real command line: each one named, with a hint, the right exit code and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from deploypruner.build.stage import chain
from deploypruner.cli import options
from deploypruner.cli.bench import _write
from deploypruner.errors import InputError
from tests.builds import (
    JUST_THE_LOG,
    Outcome,
    copy_of_finished,
    files_in,
    finished,
    finished_chatter,
    finished_outcome,
    run_cli,
    samples,
    save_program,
    tiny,
    workshop,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`python -m deploypruner ...` in the workshop."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "deploypruner", *arguments],
        check=False,
        **{"cwd": workshop(), "env": environment, "stderr": subprocess.PIPE, "text": True, **options},
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of damaged and unsuitable files."""
    folder = tmp_path_factory.mktemp("bench")
    program = (workshop() / "tiny.pt2").read_bytes()
    (folder / "empty.pt2").write_bytes(b"")
    (folder / "short.pt2").write_bytes(program[: len(program) // 2])
    flipped = bytearray(program)
    at = program.index(tiny().head.weight.detach().numpy().tobytes())
    flipped[at + 3] ^= 0x40
    (folder / "flipped.pt2").write_bytes(flipped)
    (folder / "text.pt2").write_text("not a model")
    save_file(tiny().state_dict(), folder / "fits.safetensors")
    save_file(tiny(channels=1).state_dict(), folder / "grey.safetensors")
    (folder / "short.safetensors").write_bytes((folder / "fits.safetensors").read_bytes()[:200])
    torch.save(tiny().state_dict(), folder / "state.pt")
    (folder / "short.onnx").write_bytes((finished() / "model.fp32.onnx").read_bytes()[:900])
    (folder / "junk.onnx").write_bytes(b"\x00junk" * 40)
    (folder / "factories.py").write_text((workshop() / "factories.py").read_text())
    return folder


SHAPE = ("--input-shape", "1,3,16,16")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.pt2",), ("no model file 'nothing.pt2'", "looked in")),
        (("empty.pt2",), ("'empty.pt2' is empty (0 bytes)", "again")),
        (("short.pt2",), ("'short.pt2' is truncated or corrupt",)),
        (("flipped.pt2",), ("'flipped.pt2' is truncated or corrupt",)),
        (("text.pt2",), ("'text.pt2' is truncated or corrupt",)),
        (("state.pt",), ("'state.pt' is a state dict", "--weights state.pt")),
        (("junk.onnx",), ("'junk.onnx' is an exported model", "deploypruner bench junk.onnx")),
        (("fits.safetensors",), ("holds weights without the model", "--weights fits.safetensors")),
        (("factories:tiny", "--weights", "grey.safetensors", *SHAPE), ("'stem.weight'", "[16, 1, 3, 3]")),
        (("factories:tiny", "--weights", "short.safetensors", *SHAPE), ("'short.safetensors' are truncated",)),
        (("factories:tiny",), ("input shape of 'factories:tiny' is not known", "--input-shape")),
        (("factories:tiny", "--input-shape", "1,5,16,16"), ("[1, 5, 16, 16]", "layer 'stem' (Conv2d)")),
        (("factories:tiny", "--input-shape", "1,a"), ("'1,a' is not a shape",)),
        (("factories:tinny",), ("module 'factories' has no 'tinny'", "did you mean 'tiny'?")),
        (("factories:broken",), ("KeyError: 'no such setting'",)),
        (("factories:with_nan", *SHAPE), ("'body.weight' holds 1 NaN or Inf among its 2304 elements",)),
    ],
)
def test_a_model_that_cannot_be_used_is_named(bench, arguments, said):
    outcome = run_cli("compile", *arguments, folder=bench)
    outcome.assert_error(2, *said)
    assert not (bench / "build").exists()


def test_a_model_without_anything_to_prune_leaves_its_log_alone(bench, tmp_path):
    arguments = ("factories:one_layer", "--input-shape", "1,12", "--out", str(tmp_path / "build"))
    outcome = run_cli("compile", *arguments, folder=bench)
    outcome.assert_error(2, "nothing in this model can be pruned", "model output")
    assert files_in(tmp_path / "build") == JUST_THE_LOG


def test_a_model_with_a_branch_on_its_data_is_pruned_but_not_written_as_one_path(bench):
    outcome = run_cli("compile", "factories:Branching", "--input-shape", "1,12", "--step", "1", folder=bench)
    outcome.assert_error(2, "takes more than one path", "torch.where")
    assert (bench / "build" / "weights.safetensors").exists()
    shutil.rmtree(bench / "build")


def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Hostile(), tmp_path / "model.pt")
    run_cli("compile", "model.pt", folder=tmp_path).assert_error(
        2, "'model.pt' is a pickled Python object", "--trust-pickle"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["short.onnx", "junk.onnx"])
def test_an_artifact_that_cannot_be_measured_is_named(bench, name):
    outcome = run_cli("bench", name, "--runtime", "onnxruntime", "--seconds", "1", folder=bench)
    outcome.assert_error(2, f"cannot measure '{name}' on onnxruntime", f"cannot load '{name}'", "truncated")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "there is no file or folder 'nothing'"),
        (("state.pt",), "'state.pt' cannot be measured"),
        ((".",), ". holds no artifact"),
        (("short.onnx", "--runtime", "onnx"), "no runtime called 'onnx'"),
        (("short.onnx", "--threads", "0"), "0 is not in the range 1<=x<=1024"),
        (("short.onnx", "--input-shape", "1,3"), "'1,3' is not NAME=1,3,224,224"),
    ],
)
def test_what_cannot_be_measured_is_named(bench, arguments, said):
    run_cli("bench", *arguments, folder=bench).assert_error(2, said)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and arrays that do not suit the tiny model."""
    folder = tmp_path_factory.mktemp("data")
    save_program(tiny(), folder / "tiny.pt2", torch.zeros(2, 3, 16, 16))
    (folder / "nothing" / "train" / "a").mkdir(parents=True)
    for split, classes in (("train", 5), ("val", 5)):
        for label in range(classes):
            (folder / "five" / split / f"c{label}").mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "five" / split / f"c{label}" / "0.png")
    unreadable = folder / "unreadable"
    unreadable.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16)).save(unreadable / f"{number}.png")
    (unreadable / "2.png").write_bytes(b"no image")
    x, y = samples(12)
    np.savez(folder / "high.npz", x=x, y=y + 3)
    np.savez(folder / "negative.npz", x=x, y=y - 1)
    np.savez(folder / "nan.npz", x=np.where(x == x[3, 0, 0, 0], np.nan, x), y=y)
    np.savez(folder / "grey.npz", x=x[:, :1], y=y)
    np.savez(folder / "short.npz", x=x, y=y[:5])
    return folder


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("elsewhere", ("no data folder or file 'elsewhere'", "looked in")),
        ("nothing", ("no images in", "expected train/CLASS")),
        ("unreadable", ("2.png' cannot be read", "damaged")),
        ("five", ("'five' has 5 class folders", "the model 4 outputs", "--classes")),
        ("high.npz", ("is outside the model's 4 outputs", "0..3")),
        ("negative.npz", ("label -1 of sample", "0..3")),
        ("nan.npz", ("holds NaN or Inf in 1 of 12 samples (first: 3)",)),
        ("grey.npz", ("[1, 16, 16]", "[3, 16, 16]", "--input-shape 1,1,16,16")),
        ("short.npz", ("12 samples in 'x' but 5 labels in 'y'",)),
    ],
)
def test_data_that_cannot_be_used_is_named(data, source, said):
    run_cli("compile", "tiny.pt2", "--data", source, folder=data).assert_error(2, *said)
    assert not (data / "build").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--criterion", "magnitud"), ("no criterion called 'magnitud'", "did you mean 'magnitude'?")),
        (("--criterion", "taylor"), ("criterion 'taylor' looks at gradients and needs data", "--data DIR")),
        (("--runtime", "openvin"), ("no runtime called 'openvin'", "did you mean 'openvino'?")),
        (("--target", "gpu"), ("no target called 'gpu'", "cpu")),
        (("--scope", "globl"), ("no scope called 'globl'", "did you mean 'global'?")),
        (("--macs", "0"), ("0 < macs <= 1, got 0",)),
        (("--macs", "1.5"), ("0 < macs <= 1, got 1.5",)),
        (("--macs", "-1"), ("0 < macs <= 1, got -1",)),
        (("--macs", "nan"), ("0 < macs <= 1, got nan",)),
        (("--macs", "abc"), ("invalid value for '--macs': 'abc' is not a valid float",)),
        (("--step", "0"), ("--step must be at least 1, got 0",)),
        (("--step", "32"), ("no group of this model can be cut to a multiple of 32", "smaller --step")),
        (("--threads", "0"), ("'--threads': 0 is not in the range",)),
        (("--seconds", "0"), ("'--seconds': 0.0 is not in the range",)),
        (("--epochs", "-1"), ("--epochs must be at least 0, got -1", "0 skips fine-tuning")),
        (("--mean", "a,b"), ("'a,b' is not a list of numbers",)),
        (("--train", "factories:fails"), ("'factories:fails' has nothing to train on", "--data DIR")),
        (("--train", "factories:fail", "--data", "labelled.npz"), ("no function 'fail'", "did you mean 'fails'?")),
        (("--train", "factory:fails", "--data", "labelled.npz"), ("no module called 'factory'",)),
        (("--train", "factories", "--data", "labelled.npz"), ("is not of the form package.module:function",)),
        (("--recipe", "nothing.toml"), ("no recipe file 'nothing.toml'",)),
        (("--bogus",), ("no such option '--bogus'", "deploypruner compile --help")),
    ],
)
def test_a_wrong_option_is_named_before_an_old_build_is_touched(tmp_path, arguments, said):
    old = tmp_path / "old"
    old.mkdir()
    (old / "manifest.json").write_text("{}")
    (old / "report.json").write_text("old")
    run_cli("compile", "tiny.pt2", *arguments, "--out", str(old)).assert_error(2, *said)
    assert (old / "report.json").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("compil",), ("no command called 'compil'", "did you mean 'compile'?")),
        (("list", "criterias"), ("nothing called 'criterias' to list", "did you mean 'criteria'?")),
        (("compile",), ("no MODEL given",)),
        (("plan",), ("no MODEL given",)),
        (("report", "nowhere"), ("no report file 'nowhere'",)),
        (("plan", "tiny.pt2", "--scope", "globl"), ("did you mean 'global'?",)),
        (("plan", "tiny.pt2", "--macs", "2"), ("0 < macs <= 1, got 2",)),
    ],
)
def test_a_wrong_command_is_named(arguments, said):
    run_cli(*arguments).assert_error(2, *said)


def test_a_budget_out_of_reach_exits_with_3_and_is_saved_beside_the_old_build(tmp_path):
    folder = copy_of_finished(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    outcome = run_cli("compile", "tiny.pt2", "--macs", "0.01", "--out", str(folder), "--overwrite")
    outcome.assert_error(3, "--macs 0.01 allows", "the smallest reachable budget is --macs 0.")
    saved = json.loads((tmp_path / "build.new" / "reachable.json").read_text())
    assert saved["requested_macs"] == 0.01
    assert 0.01 < saved["reachable_macs"] < 1
    assert saved["message"] in outcome.err
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert run_cli("report", str(folder)).code == 0


def test_a_budget_out_of_reach_is_said_even_where_nothing_can_be_saved(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    run_cli("compile", "tiny.pt2", "--macs", "0.01", "--out", str(tmp_path)).assert_error(
        3, "smallest reachable budget"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("/proc/nothing", "cannot write to /proc/nothing"),
        ("tiny.pt2", "--out tiny.pt2 is a file"),
        ("tiny.pt2/sub", "cannot write to tiny.pt2/sub: Not a directory"),
        (".", "holds files that are not a build's"),
    ],
)
def test_an_output_folder_that_cannot_be_used_is_named(out, said):
    run_cli("compile", "tiny.pt2", "--out", out).assert_error(2, said)
    assert (workshop() / "tiny.pt2").is_file()


def test_a_build_does_not_replace_the_model_it_starts_from(tmp_path):
    folder = copy_of_finished(tmp_path)
    command = ("compile", str(folder / "model.pt2"), "--step", "1", "--macs", "0.9", "--out", str(folder))
    run_cli(*command, "--overwrite").assert_error(2, "would replace", "model.pt2, which this build reads")
    assert (folder / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("factories:fails", "training function 'factories:fails' raised ValueError: learning rate missing"),
        ("factories:diverges", "'stem.weight' holds values that are not finite"),
    ],
)
def test_a_training_function_that_fails_is_named_and_the_build_can_go_on(tmp_path, train, said):
    out = str(tmp_path / "build")
    outcome = run_cli("compile", "tiny.pt2", "--data", "labelled.npz", "--train", train, "--out", out)
    outcome.assert_error(2, said)
    assert (tmp_path / "build" / "plan.json").is_file()


def test_training_that_diverges_is_named(tmp_path):
    recipe = tmp_path / "fast.toml"
    recipe.write_text("[recover.settings]\nlr = 1e30\nclip_norm = inf\nwarmup = 0\nbatch_size = 8\n")
    outcome = run_cli(
        *("compile", "tiny.pt2", "--data", "labelled.npz", "--recipe", str(recipe), "--out", str(tmp_path / "build"))
    )
    outcome.assert_error(2, "became", "in epoch 1, batch", "lower the learning rate (now 1e+30)")


# ---------------------------------------------------------------------- what a person sees


def test_a_finished_build_prints_the_table_to_stdout_and_everything_else_to_stderr():
    outcome = finished_outcome()
    assert "dense fp32" in outcome.out
    assert "budget: MACs relative to dense: requested 50.0 %" in outcome.out
    silent = ("learn", "assign", "sparse", "settle")  # they had nothing to do
    stages = [stage.name for stage in chain() if stage.name not in silent]
    lines = outcome.err.splitlines()
    assert [line.split()[0] for line in lines[:-2] if not line.startswith("stage ")] == stages  # one every 30 s
    assert lines[-1].endswith("report.html has the pictures, the proof and the raw data")
    assert "\x1b" not in outcome.out + outcome.err


def test_no_library_speaks_while_a_build_is_made():
    assert finished_chatter() == ""


def test_report_prints_the_same_table_again_and_mends_the_page(tmp_path):
    folder = copy_of_finished(tmp_path)
    (folder / "report.html").unlink()
    outcome = run_cli("report", str(folder))
    # The lines that load the file name it where it is now.
    assert outcome.out.replace(str(folder), str(finished())) == finished_outcome().out
    page = (folder / "report.html").read_text()
    assert page.replace(str(folder), str(finished())) == (finished() / "report.html").read_text()
    assert run_cli("report", str(folder / "report.json")).out == outcome.out


def test_bench_of_a_build_folder_measures_all_its_models():
    outcome = run_cli("bench", str(finished()), "--seconds", "1", "--runtime", "onnxruntime")
    assert outcome.code == 0, outcome.err
    for name in ("dense.fp32.onnx", "dense.int8.onnx", "model.fp32.onnx", "model.int8.onnx"):
        assert name in outcome.out
    assert [line for line in outcome.err.splitlines() if ": " not in line] == []  # where it is, every 30 s


def test_plan_shows_groups_widths_and_what_is_frozen_and_writes_nothing():
    before = sorted(p.name for p in workshop().iterdir())
    short = run_cli("plan", "tiny.pt2")
    assert short.code == 0, short.err
    assert "tiny: 175 k MACs, 2.85 k parameters, 1 group; traced by torch.export" in short.out
    assert "         3  model input" in short.out
    long = run_cli("plan", "tiny.pt2", "--macs", "0.5", "--frozen", "--data", "labelled.npz")
    assert "16 -> 8" in long.out
    assert "         4  model output\n            outputs of head\n" in long.out
    assert sorted(p.name for p in workshop().iterdir()) == before


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("criteria", "magnitude"),
        ("patterns", "channel"),
        ("runtimes", "openvino"),
        ("scopes", "global"),
        ("targets", "cpu"),
    ],
)
def test_list_names_and_explains_what_can_be_chosen(kind, name):
    outcome = run_cli("list", kind)
    assert any(line.startswith(name) and len(line.split()) > 2 for line in outcome.out.splitlines())


def test_without_a_command_the_help_is_shown():
    outcome = run_cli()
    assert outcome.code == 0
    assert "Usage:" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("terminal", "no_color", "colour"), [(True, "", True), (True, "1", False), (False, "", False)]
)
def test_colour_is_for_terminals_and_can_be_switched_off(monkeypatch, terminal, no_color, colour):
    monkeypatch.setattr(sys, "stdout", type("Stream", (), {"isatty": lambda self: terminal})())
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("COLUMNS", "99")
    assert options.colour() is colour
    assert options.width() == (99 if terminal else None)


def test_a_full_disk_behind_stdout_is_named():
    with Path("/dev/full").open("w") as full:
        done = process("list", "targets", stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space left while writing the output\n\nhint: ")


def test_a_reader_that_stops_reading_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = process("list", "targets", stdout=gone)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_dry_run_offers_no_resume(monkeypatch, number):
    monkeypatch.setattr("deploypruner.cli.plan.describe", lambda *_, **__: signal.raise_signal(number))
    outcome: Outcome = run_cli("plan", "tiny.pt2")
    assert (outcome.code, outcome.err) == (130, "error: interrupted\n")


def test_the_bug_of_ours_is_not_dressed_up(monkeypatch):
    monkeypatch.setattr("deploypruner.cli.plan.describe", lambda *_, **__: {}["key"])
    with pytest.raises(KeyError):
        run_cli("plan", "tiny.pt2")


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_report_whose_page_cannot_be_written_is_shown_all_the_same(tmp_path, monkeypatch):
    folder = copy_of_finished(tmp_path)
    page = (folder / "report.html").read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    outcome = run_cli("report", str(folder))
    assert outcome.code == 2
    assert "dense fp32" in outcome.out
    assert "error: no space left on the disk while writing" in outcome.err
    assert (folder / "report.html").read_bytes() == page


def test_json_of_a_benchmark_takes_the_place_of_an_earlier_one_only_when_it_is_whole(tmp_path, monkeypatch):
    document = tmp_path / "found.json"
    document.write_text("{}")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*found\.json"):
        _write(document, '{"rows": []}')
    assert document.read_text() == "{}"
    with pytest.raises(InputError, match="no space left on the disk while writing /dev/full"):
        _write(Path("/dev/full"), "x")
