"""The file to ship: what the build says of it, and that the three lines which load it do."""

import json

import numpy as np
import onnx
import openvino
import pytest
import torch

from deploypruner import __version__
from deploypruner.export.metadata import label_onnx, read_metadata
from deploypruner.recipe.data import DataSettings
from deploypruner.report import headline, read_report, render_html, table
from deploypruner.report.ship import classes_sentence, input_sentence
from deploypruner.runtime import runtimes
from deploypruner.sources.arrays import from_arrays
from tests.builds import IMAGE, finished
from tests.test_report_examples import a_report

pytestmark = pytest.mark.slow


def executed(lines, **arrays):
    """What three lines of a report leave in `outputs`."""
    names = dict(arrays)
    exec("\n".join(lines), names)
    return names["outputs"]


def first(outputs):
    return np.asarray(outputs[0])


def test_the_three_lines_of_a_finished_build_run_and_answer_as_the_file_does():
    report, x = read_report(finished()), np.ones((2, *IMAGE), np.float32)
    found = report.deploy
    row = headline(report).recommended
    assert (found["artifact"], found["runtime"]) == (
        (row.name, row.runtime) if row else ("dense fp32", "onnxruntime")
    )
    assert len(found["load"]) == 3
    outputs = first(executed(found["load"], x=x))
    session = runtimes.get(found["runtime"])().open(finished() / found["file"])
    np.testing.assert_allclose(outputs, session.run([x])[0], atol=1e-6)
    assert found["bytes"] == sum((finished() / name).stat().st_size for name in found["files"])


@pytest.mark.parametrize(
    ("runtime", "file"),
    [
        ("openvino", "model.int8.xml"),
        ("openvino", "dense.fp32.onnx"),
        ("onnxruntime", "model.int8.onnx"),
        ("torch", "model.pt2"),
    ],
)
def test_every_runtime_says_how_its_files_are_loaded(runtime, file):
    threads = torch.get_num_threads()
    path, x = finished() / file, np.ones((2, *IMAGE), np.float32)
    try:
        outputs = executed(runtimes.get(runtime).usage(path, ["x"], threads=1), x=x)
    finally:
        torch.set_num_threads(threads)
    answer = outputs.detach().numpy() if runtime == "torch" else first(outputs)
    np.testing.assert_allclose(answer, runtimes.get(runtime)().open(path).run([x])[0], atol=1e-6)


def test_the_file_to_ship_is_in_the_table_and_on_the_page():
    report = read_report(finished())
    text, page = table(report, colour=False, width=80), render_html(report)
    assert f"ship: {report.deploy['file']}" in text
    for line in report.deploy["load"]:
        assert f"    {line}\n" in text  # whole, to be pasted
    assert f'<a href="{report.deploy["file"]}">' in page
    (entry,) = report.deploy["inputs"]
    assert (entry["name"], entry["shape"], entry["layout"], entry["dtype"]) == ("x", ["N", *IMAGE], "NCHW", "float32")
    assert entry["range"][0] < 0 < entry["range"][1]
    assert "ship: " not in table(a_report(), colour=False)


@pytest.mark.parametrize("name", ["dense.fp32.onnx", "dense.int8.onnx", "model.fp32.onnx", "model.int8.onnx"])
def test_an_onnx_file_says_where_it_comes_from(name):
    found = read_metadata(finished() / name)
    assert (found["version"], found["source"]) == (__version__, "tiny.pt2")
    onnx.checker.check_model(finished() / name)


def test_the_ir_says_the_same():
    model = openvino.Core().read_model(finished() / "model.int8.xml")
    for name, value in read_metadata(finished() / "model.int8.onnx").items():
        assert model.get_rt_info(["deploypruner", name]).astype(str) == value


def test_labels_are_added_to_what_a_file_has(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes((finished() / "model.fp32.onnx").read_bytes())
    before = onnx.load(path)
    label_onnx(path, {"classes": json.dumps(["cat", "dög"])})
    after = onnx.load(path)
    assert json.loads(read_metadata(path)["classes"]) == ["cat", "dög"]
    assert read_metadata(path)["version"] == __version__
    del after.metadata_props[:], before.metadata_props[:]
    assert after == before


def test_pixels_say_how_they_become_inputs_and_floats_that_they_do_not():
    pixels = np.zeros((6, 3, 8, 8), np.uint8)
    data = from_arrays({"x": pixels}, DataSettings(mean=(0.5, 0.25, 0.125), std=(0.5, 0.5, 0.25)), name="a")
    assert data.images.normalisation(data.images.channels) == ((0.5, 0.25, 0.125), (0.5, 0.5, 0.25))
    assert from_arrays({"x": pixels.astype(np.float32)}, DataSettings(), name="a").images is None
    entry = {"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8], "layout": "NCHW", "range": [-1.0, 3.5]}
    assert input_sentence({**entry, "mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.25]}) == (
        "x, float32 [N, 3, 8, 8] NCHW, -1 to 3.5: (pixels / 255 - mean) / std, mean 0.5 0.25 0.125, std 0.5 0.5 0.25"
    )
    assert input_sentence({**entry, "mean": None, "std": None}).endswith("-1 to 3.5 in the data")
    assert classes_sentence([str(n) for n in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more (see report.json)"
