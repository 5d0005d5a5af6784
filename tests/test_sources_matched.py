"""Data comes to a model in its own types and under its own names, or an error says what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from deploypruner.build.fitting import Said
from deploypruner.build.sparsify_inputs import sparsify_inputs
from deploypruner.errors import InputError
from deploypruner.graph.inputs import as_inputs
from deploypruner.recipe.data import DataSettings
from deploypruner.records import TensorSpec
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.sources.data import as_data
from deploypruner.sources.matched import input_names, matched
from deploypruner.sources.model import load_model


class Text(nn.Module):
    """Words and a mask: a sum over the words that are not masked."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.words(input_ids) * attention_mask[..., None]).sum(1)


IDS, MASK = torch.tensor([[3, 1, 4], [1, 5, 8]]), torch.tensor([[1, 1, 0], [1, 0, 0]])


def first(given: object, example: object, names: tuple[str, ...] = ()) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    data, remarks = matched(as_data(given), example, names)
    inputs, _ = next(data.train.epoch(batch_size=2))
    return inputs, remarks


@pytest.mark.parametrize("keyword", [True, False])
def test_dicts_of_a_loader_go_to_the_arguments_of_their_name(keyword):
    example = {"input_ids": IDS, "attention_mask": MASK} if keyword else (IDS, MASK)
    names = input_names(Text(), example)
    assert names == ("input_ids", "attention_mask")
    batch = {"attention_mask": MASK, "labels": torch.tensor([0, 1]), "input_ids": IDS, "idx": torch.tensor([7, 8])}
    inputs, remarks = first([batch], example, names)
    assert torch.equal(inputs[0], IDS)
    assert torch.equal(inputs[1], MASK)
    assert "idx are left out" in remarks[0]
    with pytest.raises(InputError, match="dicts of input_ids, mask; the model's input 'attention_mask' is not among"):
        first([{"mask": MASK, "input_ids": IDS}], example, names)


def test_two_inputs_are_not_taken_for_an_input_and_its_labels():
    with pytest.raises(InputError, match=r"takes 2 inputs, and the data gives 1[\s\S]*\(\(first, second\)"):
        first([(IDS, MASK)], (IDS, MASK))
    assert torch.equal(first([((IDS, MASK), None)], (IDS, MASK))[0][1], MASK)


@pytest.mark.parametrize("given", [torch.int32, torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("taken", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16])
def test_whole_numbers_survive_every_pair_of_types(given, taken):
    (value,), _ = first([IDS.to(given)], (torch.zeros(2, 3, dtype=taken),))
    assert value.dtype == taken
    assert value.tolist() == IDS.tolist()


@pytest.mark.parametrize(
    ("value", "taken", "said"),
    [
        (torch.tensor([[1.0, 2.5]]), torch.int64, r"gives 2\.5 \(float32\) for input 0, and the model takes int64"),
        (torch.tensor([[1, 300]]), torch.uint8, r"gives 300 \(int64\).*uint8[\s\S]*from 0 to 255"),
        (torch.tensor([[1, -1]]), torch.uint8, "gives -1"),
        (torch.tensor([[1, 2]]), torch.bool, "gives 2"),
    ],
)
def test_a_number_the_model_cannot_take_is_named(value, taken, said):
    with pytest.raises(InputError, match=said):
        first([value], (torch.zeros(value.shape, dtype=taken),))


def test_data_of_the_right_type_stays_what_it_is():
    data = as_data([IDS])
    assert matched(data, (IDS,))[0] is data


def test_integer_features_for_a_float_model_are_said_to_be_converted(tmp_path: Path):
    np.savez(tmp_path / "d.npz", x=np.arange(12).reshape(4, 3))
    (value,), remarks = first(str(tmp_path / "d.npz"), (torch.zeros(1, 3),))
    assert value.dtype == torch.float32
    assert remarks == ("input 0 of the data is converted from int64 to float32, which the model takes",)


def test_a_model_that_looks_a_table_up_gets_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "words_of_a_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net(): return nn.Sequential(nn.Embedding(2, 3), nn.Flatten(), nn.Linear(12, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_model("words_of_a_net:net", input_shapes=((1, 4),))
    assert loaded.example_inputs[0].dtype == torch.int64
    assert any("whole numbers" in remark for remark in loaded.remarks)


def means_of_bytes(path: Path) -> Path:
    """A file that takes images as bytes, channels last, and returns the mean of every channel."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["means"], axes=[1, 2], keepdims=0),
    ]
    taken = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 6, 3])
    given = helper.make_tensor_value_info("means", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "means", [taken], [given])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_images_reach_a_file_that_takes_bytes_with_channels_last(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=pixels)
    session = OnnxRuntime().open(means_of_bytes(tmp_path / "m.onnx"))
    assert session.inputs == (TensorSpec("image", (None, 8, 6, 3), "uint8"),)
    settings = DataSettings(val_fraction=0.25)
    inputs = sparsify_inputs(session, str(tmp_path / "d.npz"), settings, batch=None, said=Said({}))
    feeds = inputs.samples[0][0][0]
    assert feeds.dtype == np.uint8
    assert feeds.shape[1:] == (8, 6, 3)
    assert {tuple(image.reshape(-1)) for image in feeds} <= {tuple(image.reshape(-1)) for image in pixels}


def test_a_list_of_inputs_samples_or_labels_is_never_guessed():
    """A loader's batch is a list [x, labels]; as two inputs it would trace the loss of a model."""
    with pytest.raises(InputError, match=r"a list of 2[\s\S]*pass a tuple of the inputs"):
        as_inputs([IDS, MASK])
    assert as_inputs((IDS, MASK)) == (IDS, MASK)
    assert as_inputs([IDS]) == (IDS,)
    assert as_inputs(([IDS, MASK],)) == ([IDS, MASK],)


def test_a_pair_of_like_arrays_is_never_guessed():
    noisy, clean = torch.zeros(4, 3, 2, 2), torch.ones(4, 3, 2, 2)
    with pytest.raises(InputError, match=r"inputs and their targets, or two batches[\s\S]*\[\(inputs, targets\)\]"):
        as_data((noisy, clean))
    batches = [inputs for inputs, _ in as_data([noisy, clean]).train.epoch(batch_size=4)]
    assert [float(inputs[0].mean()) for inputs in batches] == [0, 1]
    batches = [inputs for inputs, _ in as_data([(noisy, clean)]).train.epoch(batch_size=4)]
    assert [float(inputs[0].mean()) for inputs in batches] == [0]


class Both(nn.Module):
    """An image and facts about it."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.know = nn.Conv2d(3, 4, 3), nn.Linear(5, 4)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.look(image).mean((2, 3)) + self.know(table)


IMAGE, TABLE = torch.ones(2, 3, 8, 8), torch.ones(2, 5)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ([((TABLE, IMAGE), None)], r"yield \(\(image, table\), labels\)"),
        ([{"image": TABLE, "table": IMAGE}], r"name them so: image \[3, 8, 8\], table \[5\]"),
    ],
)
def test_inputs_in_another_order_are_named_with_their_shapes(given, hint):
    said = r"\[5\] for 'image', which takes \[3, 8, 8\] and \[3, 8, 8\] for 'table', which takes \[5\]\n\nhint: "
    with pytest.raises(InputError, match=said + hint):
        matched(as_data(given), (IMAGE, TABLE), ("image", "table"))
    right = [((IMAGE, TABLE), None)] if isinstance(given[0], tuple) else [{"table": TABLE, "image": IMAGE}]
    data, _ = matched(as_data(right), (IMAGE, TABLE), ("image", "table"))
    assert data.train.input_shapes == ((3, 8, 8), (5,))


def test_a_model_that_runs_on_its_inputs_in_another_order_says_in_which(tmp_path, monkeypatch):
    (tmp_path / "both_inputs.py").write_text("from tests.test_sources_matched import Both\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = r"in this order; it takes \[1, 3, 8, 8\] as 'image' and \[1, 5\] as 'table'\n\nhint: "
    with pytest.raises(InputError, match=said + "--input-shape 1,3,8,8 --input-shape 1,5$"):
        load_model("both_inputs:Both", input_shapes=((1, 5), (1, 3, 8, 8)))
    with pytest.raises(InputError, match=said + r"yield \(\(image, table\), labels\)"):
        load_model("both_inputs:Both", data_shapes={"0": (5,), "1": (3, 8, 8)})
    loaded = load_model("both_inputs:Both", data_shapes={"0": (3, 8, 8), "1": (5,)})
    assert [tuple(t.shape) for t in loaded.example_inputs] == [(1, 3, 8, 8), (1, 5)]
    with pytest.raises(InputError, match=r"cannot run on an input of shape \[1, 7\]"):
        load_model("both_inputs:Both", input_shapes=((1, 7), (1, 9)))
