"""Models and data of unusual form: what has to work is built up to the recovered weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.builds import Tiny, run_cli, samples, save_program, stopped_before, tiny

pytestmark = pytest.mark.slow


class Baked(Tiny):
    """A batch size written into the graph."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.reshape(self.batch, 3, 16, 16))


class Words(nn.Module):
    """Class scores of a sequence of word indices."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.a, self.b = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.words(x)).relu().mean(1))


class Named(Tiny):
    """Two outputs in a dict."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = super().forward(x)
        return {"scores": y, "half": y / 2}


class Map(nn.Module):
    """One output per pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def images(folder: Path, count: int, size: tuple[int, int], mode: str = "RGB") -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for number in range(count):
        pixels = rng.integers(0, 256, (*size, 3) if mode == "RGB" else size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("forms")
    image = torch.zeros(2, 3, 16, 16)
    save_program(tiny(), made / "tiny.pt2", image)
    save_program(tiny(channels=1), made / "grey.pt2", image[:, :1])
    save_program(tiny(), made / "fixed1.pt2", image[:1], dynamic=False)
    save_program(Baked(4), made / "baked4.pt2", torch.zeros(4, 3, 16, 16), dynamic=False)
    save_program(Baked(1), made / "baked1.pt2", image[:1], dynamic=False)
    save_program(Words(), made / "words.pt2", torch.zeros(2, 7, dtype=torch.int64))
    save_program(Named(), made / "named.pt2", image)
    save_program(Map(), made / "map.pt2", image)
    x, y = samples(60)
    np.savez(made / "arrays.npz", x=x, y=y)
    np.savez(made / "two.npz", x=x, y=y, x_val=x[:2], y_val=y[:2])
    np.savez(made / "one.npz", x=x, y=y, x_val=x[:1], y_val=y[:1])
    np.savez(made / "grey.npz", x=np.random.default_rng(0).integers(0, 256, (60, 1, 16, 16), dtype=np.uint8), y=y)
    np.savez(made / "words.npz", x=np.random.default_rng(0).integers(0, 30, (60, 7)), y=y)
    return made


def build(folder: Path, model: str, data: str, *, out: Path) -> str:
    with stopped_before("quantize"):
        outcome = run_cli(
            "compile", model, "--data", data, "--epochs", "1", "--out", str(folder / "b"), folder=folder
        )
    assert outcome.code == 130, outcome.err
    return outcome.err


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("tiny.pt2", "arrays.npz"),
        ("tiny.pt2", "two.npz"),
        ("tiny.pt2", "one.npz"),
        ("grey.pt2", "grey.npz"),
        ("fixed1.pt2", "arrays.npz"),
        ("baked4.pt2", "arrays.npz"),
        ("words.pt2", "words.npz"),
        ("named.pt2", "arrays.npz"),
    ],
)
def test_labelled_data_recovers_with_its_accuracy_said(folder, tmp_path, model, data):
    assert "accuracy dense -> removed -> recovered: " in build(folder, model, data, out=tmp_path)


def test_class_labels_of_a_model_that_is_no_classifier_are_left_out(folder, tmp_path):
    said = build(folder, "map.pt2", "arrays.npz", out=tmp_path)
    assert "unlabelled data 'arrays'" in said
    assert "accuracy" not in said


@pytest.mark.parametrize(
    ("name", "size", "mode"), [("plain", (16, 16), "RGB"), ("odd", (19, 33), "RGB"), ("grey", (16, 16), "L")]
)
def test_images_without_classes_recover_without_an_accuracy(folder, tmp_path, name, size, mode):
    images(folder / name / "train", 12, size, mode)
    images(folder / name / "val", 1, size[::-1], mode)
    said = build(folder, "grey.pt2" if mode == "L" else "tiny.pt2", name, out=tmp_path)
    assert f"unlabelled data '{name}' (12 + 1 samples)" in said
    assert "accuracy" not in said


def test_a_batch_of_one_written_into_the_graph_is_named_where_there_is_data_to_train_on(folder, tmp_path):
    outcome = run_cli("compile", "baked1.pt2", "--data", "arrays.npz", folder=folder)
    outcome.assert_error(2, "the model takes one sample at a time", "leave out --data")
    with stopped_before("quantize"):
        assert run_cli("compile", "baked1.pt2", "--out", str(tmp_path), folder=folder).code == 130


def test_a_model_with_two_inputs_needs_a_shape_for_each(tmp_path):
    (tmp_path / "pair.py").write_text(
        "import torch\n"
        "class Pair(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b, self.c = (torch.nn.Linear(i, o) for i, o in ((12, 16), (6, 16), (16, 4)))\n"
        "    def forward(self, x, y):\n"
        "        return self.c((self.a(x) + self.b(y)).relu())\n"
        "def data():\n"
        "    batch = (torch.randn(8, 12), torch.randn(8, 6), torch.arange(8) % 4)\n"
        "    return [batch, batch]\n"
    )
    run_cli("compile", "pair:Pair", "--input-shape", "1,12", folder=tmp_path).assert_error(
        2, "[1, 12]", "one per input"
    )
    command = ("compile", "pair:Pair", "--input-shape", "1,12", "--input-shape", "1,6", "--data", "pair:data")
    with stopped_before("quantize"):
        outcome = run_cli(*command, "--epochs", "1", folder=tmp_path)
    assert outcome.code == 130, outcome.err
    assert "accuracy dense -> removed -> recovered: " in outcome.err
