"""Preprocessing inside the graph: pixels go in, and the answer is the same."""

import numpy as np
import pytest
import torch

from deploypruner.errors import InputError
from deploypruner.export.embed import embed_preprocessing
from deploypruner.export.to_onnx import Onnx
from deploypruner.report import read_report, table
from deploypruner.runtime import runtimes
from tests.builds import COMPILE, IMAGE, run_cli, tiny, workshop

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.2)


def test_pixels_go_in_and_the_answer_is_that_of_the_prepared_floats(tmp_path):
    path, inside = tmp_path / "a.onnx", tmp_path / "b.onnx"
    Onnx().write(tiny(), (torch.zeros(2, *IMAGE),), path, dynamic_batch=True)
    embed_preprocessing(path, inside, mean=MEAN, std=STD)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    floats = np.stack([(pixels[..., c] / 255 - MEAN[c]) / STD[c] for c in range(3)], axis=1).astype(np.float32)
    for name in ("onnxruntime", "openvino"):
        session = runtimes.get(name)().open(inside)
        assert [(spec.name, spec.shape, spec.dtype) for spec in session.inputs] == [
            ("pixels", (None, 16, 16, 3), "uint8")
        ]
        np.testing.assert_allclose(
            session.run([pixels])[0], runtimes.get(name)().open(path).run([floats])[0], atol=1e-4
        )
    with pytest.raises(InputError, match="has 3 channels, and mean has 1"):
        embed_preprocessing(path, inside, mean=(0.5,), std=(0.5,))
    with pytest.raises(InputError, match="does not take one batch of float images"):
        embed_preprocessing(inside, path, mean=MEAN, std=STD)


@pytest.mark.slow
def test_a_build_of_images_writes_such_a_file_where_it_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        workshop() / "pixels.npz", x=rng.integers(0, 256, (32, 3, 16, 16)).astype(np.uint8), y=rng.integers(0, 4, 32)
    )
    options = [word.replace("labelled.npz", "pixels.npz") for word in COMPILE]
    outcome = run_cli(
        *options, "--embed-preprocessing", "--allow-chance", "--macs", "0.6", "--out", str(tmp_path / "b")
    )
    assert outcome.code in (0, 3), outcome.err
    report = read_report(tmp_path / "b")
    found = report.deploy["pixels"]
    assert (found["input"]["shape"], found["input"]["layout"]) == (["N", 16, 16, 3], "NHWC")
    names = {"pixels": np.zeros((1, 16, 16, 3), np.uint8)}
    exec("\n".join(found["load"]), names)
    assert np.asarray(names["outputs"][0]).shape == (1, 4)
    assert any(check.name.endswith("= model.pixels.onnx") and check.passed for check in report.verification)
    assert "pixels: model.pixels.onnx is the same" in table(report, colour=False)
    assert "model.pixels.onnx" in report.files
    (first,) = report.deploy["inputs"]
    assert first["mean"] == [0.485, 0.456, 0.406]
