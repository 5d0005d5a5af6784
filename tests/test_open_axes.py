"""Open axes: other lengths than the example's, from the graph to every artifact, against the original model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import deploypruner as dp
from deploypruner.channels.remove import remove_and_prove
from deploypruner.errors import InputError, RecipeError, TraceError
from deploypruner.export import exporters
from deploypruner.graph import Graph
from deploypruner.graph.capture.asked_axes import Asked, parse, requested
from deploypruner.graph.open_axes import as_json
from deploypruner.graph.reference import run
from deploypruner.recipe import ModelRecipe
from deploypruner.sparse.fixing import fixed_at
from deploypruner.verify.exported import verify_exports
from tests.builds import run_cli

pytestmark = pytest.mark.slow


class UNet(nn.Module):
    """One stage of stride two; `how` the way back up is done decides which sizes run."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.into, self.down, self.out = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.into(x).relu()
        if self.how == "pads" and x.shape[-1] % 2:
            a = F.pad(a, (0, 1))
        b = self.down(a)
        up = F.interpolate(b, scale_factor=2.0) if self.how == "factor" else F.interpolate(b, size=a.shape[-2:])
        return self.out(torch.cat([a, up], 1))


class Positions(nn.Module):
    """Ids, a table of 64 positions and a linear layer; `cut` takes as many positions as there are ids."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.words, self.places = nn.Embedding(10, 16), nn.Parameter(torch.randn(1, 64, 16))
        self.hidden, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = self.places[:, : ids.shape[1]] if self.cut else self.places
        return self.out(self.hidden(self.words(ids) + places).relu().mean(1))


class Encoder(nn.Module):
    """A transformer layer over ids, with a mask of the same length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(self.words(ids), src_key_padding_mask=mask).mean(1))


class Recurrent(nn.Module):
    """The last output of an LSTM or GRU."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 48), nn.Linear(32, 4)
        self.layer = kind(48, 16, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(self.into(x).relu())[0][:, -1])


class Pooled(nn.Module):
    """A ResNet's end: pooled to `n` x `n`."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 8, 3, 1, 1)
        self.pool, self.out = nn.AdaptiveAvgPool2d(n), nn.Linear(8 * n * n, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.pool(self.b(self.a(x).relu())).flatten(1))


IMAGE = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(32).reshape(2, 16) % 10
SEQUENCE = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()


def pruned(graph: Graph) -> tuple[nn.Module, tuple[dp.records.Check, ...]]:
    plan = dp.plan(graph, budget=dp.Budget(macs=0.6), step=2)
    assert plan.macs_after < plan.macs_before
    return remove_and_prove(graph, plan)


def random_like(case: tuple[torch.Tensor, ...], axis: dict[int, int]) -> tuple[torch.Tensor, ...]:
    """Other values, the given lengths on the given axes."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for t in case:
        shape = [axis.get(d, n) for d, n in enumerate(t.shape)]
        ids = torch.randint(0, 2, shape, generator=generator).to(t.dtype)
        found.append(torch.randn(shape, generator=generator) if t.is_floating_point() else ids)
    return tuple(found)


CASES = {
    "segmentation": (segmenter, (IMAGE,), "2,3", ({2: 7, 3: 9}, {2: 40, 3: 16})),
    "u-net to another's size": (lambda: UNet("size"), (IMAGE,), "2,3", ({2: 15, 3: 33}, {2: 32, 3: 8})),
    "u-net by a factor": (lambda: UNet("factor"), (IMAGE,), "2,3", ({2: 18, 3: 32}, {2: 8, 3: 10})),
    "pooling": (lambda: Pooled(1), (IMAGE,), "2,3", ({2: 15, 3: 33}, {2: 32, 3: 8})),
    "encoder": (
        Encoder,
        (IDS, torch.zeros(2, 16, dtype=torch.bool)),
        "1",
        ({1: 5}, {1: 31}),
    ),
    "positions": (lambda: Positions(cut=True), (IDS,), "1", ({1: 5}, {1: 64})),
    "lstm": (lambda: Recurrent(nn.LSTM), (SEQUENCE,), "1", ({1: 3}, {1: 29})),
    "gru": (lambda: Recurrent(nn.GRU), (SEQUENCE,), "1", ({1: 3}, {1: 29})),
}


@pytest.mark.parametrize("name", CASES)
def test_every_form_computes_what_the_model_does_at_other_lengths(name, tmp_path):
    make, inputs, dynamic, lengths = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    graph = dp.trace(model, inputs, dynamic_shapes=dynamic)
    assert {axis.axis for axis in graph.open_axes} == set(parse((dynamic,)) and map(int, dynamic.split(",")))
    double, traced = copy.deepcopy(model).double(), copy.deepcopy(graph.module).double()
    for axis in lengths:
        given = random_like(inputs, axis)
        wide = [t.double() if t.is_floating_point() else t for t in given]
        torch.testing.assert_close(traced(*wide), double(*wide), rtol=1e-11, atol=1e-12)

    module, checks = pruned(graph)
    assert all(check.passed for check in checks)
    assert len(checks) == 3, "the third one is at another length"
    assert graph.open_axes[0].name in checks[2].name
    files = {file: tmp_path / file for file in ("m.onnx", "m.pt2", "ir.xml")}
    for path, kind in zip(files.values(), ("onnx", "pt2", "openvino"), strict=True):
        exporters.get(kind)().write(module, inputs, path, dynamic_batch=True, open_axes=graph.open_axes)
    session = onnxruntime.InferenceSession(files["m.onnx"])
    # In float32 on processors with bf16, too.
    ir = openvino.Core().compile_model(files["ir.xml"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    program = torch.export.load(files["m.pt2"]).module()
    for axis in lengths:
        given = random_like(inputs, axis)
        with torch.no_grad():
            want = module(*given).numpy()
        arrays = [t.numpy() for t in given]
        got = session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})[0]
        np.testing.assert_allclose(got, want, atol=1e-4)
        np.testing.assert_allclose(ir(arrays)[0], want, atol=1e-4)
        np.testing.assert_allclose(program(*given).detach().numpy(), want, atol=1e-5)
    for i, tensor in enumerate(inputs):
        names = {a.axis: a.name for a in graph.open_axes if a.tensor == i}
        assert session.get_inputs()[i].shape == [
            "batch",
            *(names.get(d + 1, n) for d, n in enumerate(tensor.shape[1:])),
        ]


def test_axes_are_named_as_people_call_them_and_tied_ones_alike():
    graph = dp.trace(segmenter(), IMAGE, dynamic_shapes="2,3")
    assert [(a.input, a.axis, a.name, a.length, a.step) for a in graph.open_axes] == [
        ("input", 2, "height", 16, 1),
        ("input", 3, "width", 24, 1),
    ]
    graph = dp.trace(Encoder().eval(), (IDS, torch.zeros(2, 16, dtype=torch.bool)), dynamic_shapes="auto")
    assert [(a.input, a.name) for a in graph.open_axes] == [("ids", "sequence"), ("mask", "sequence")]


def test_lengths_that_a_model_needs_in_steps_are_said_and_others_refused():
    graph = dp.trace(UNet("factor").eval(), IMAGE, dynamic_shapes="2,3")
    assert [a.step for a in graph.open_axes] == [2, 2]
    assert "in steps of 2 from 16" in "".join(graph.remarks)
    with pytest.raises(
        InputError, match=r"axis 3 of 'x' is 25 long, and the graph is for any length, in steps of 2 from 24"
    ):
        graph.module(torch.randn(1, 3, 16, 25))


def test_a_path_that_only_some_lengths_take_is_not_taken_by_the_others():
    # An odd width is padded, which the graph of an even one does not do: without a guard it would be silently wrong.
    model = UNet("pads").eval()
    graph = dp.trace(model, IMAGE, dynamic_shapes="2,3")
    assert [a.step for a in graph.open_axes] == [1, 2]
    even = torch.randn(1, 3, 13, 10)
    torch.testing.assert_close(graph.module(even), model(even))
    with pytest.raises(InputError, match=r"axis 3 of 'x' is 25 long"):
        graph.module(torch.randn(1, 3, 16, 25))


def test_a_table_of_positions_bounds_the_length():
    model = Positions(cut=True).eval()
    graph = dp.trace(model, IDS, dynamic_shapes="1")
    assert [(a.least, a.most) for a in graph.open_axes] == [(None, 64)]
    with pytest.raises(InputError, match="is 65 long"):
        graph.module(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(InputError, match="at most 64") as refused:
        dp.trace(model, IDS, dynamic_shapes="ids:1=1..512")
    # The hint works.
    assert refused.value.hint.endswith("--dynamic ids:1=1..64")
    dp.trace(model, IDS, dynamic_shapes="ids:1=1..64")


def test_what_cannot_stay_open_is_refused_with_its_name_and_left_closed_by_auto():
    fixed = (Positions(cut=False).eval(), torch.zeros(2, 64, dtype=torch.long))
    with pytest.raises(InputError, match=r"axis 1 of 'ids' cannot stay open, it is 64 in the graph"):
        dp.trace(*fixed, dynamic_shapes="1")
    graph = dp.trace(*fixed, dynamic_shapes="auto")
    assert graph.open_axes == ()
    assert "axis 1 of 'ids' stays 64" in "".join(graph.remarks)
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 22, 4)).eval()
    with pytest.raises(InputError, match=r"axis 2 of 'input' cannot stay open"):
        dp.trace(flat, IMAGE, dynamic_shapes="2")


def test_an_axis_that_another_input_holds_fast_is_refused_with_that_input():
    inputs = (IDS, torch.zeros(2, 16, dtype=torch.bool))
    with pytest.raises(InputError, match=r"axis 1 of 'ids' cannot stay open") as refused:
        dp.trace(Encoder().eval(), inputs, dynamic_shapes="ids:1")
    assert refused.value.hint.startswith("axis 1 of 'mask' is as long and was not asked for: try --dynamic 1;")


def test_a_kernel_bounds_the_length_from_below():
    model = nn.Sequential(nn.Conv2d(3, 8, 7), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with pytest.raises(InputError, match="takes at least 7 there") as refused:
        dp.trace(model, IMAGE, dynamic_shapes="2=3..64")
    assert refused.value.hint.endswith("--dynamic input:2=7..64")
    assert [a.least for a in dp.trace(model, IMAGE, dynamic_shapes="2=7..64").open_axes] == [7]


def test_a_program_keeps_its_own_open_sizes_unless_told_otherwise():
    dims = {0: Dim("n", min=1, max=64), 2: Dim("h", min=8, max=512), 3: Dim("w", min=8, max=512)}
    program = torch.export.export(segmenter(), (IMAGE,), dynamic_shapes=(dims,))
    graph = dp.trace(program, IMAGE)
    assert [(a.name, a.least, a.most) for a in graph.open_axes] == [("height", 8, 512), ("width", 8, 512)]
    assert [a.name for a in dp.trace(program, IMAGE, dynamic_shapes="3").open_axes] == ["width"]
    assert dp.trace(program, IMAGE, dynamic_shapes="none").open_axes == ()
    closed = torch.export.export(segmenter(), (IMAGE,), dynamic_shapes=({0: Dim.DYNAMIC},))
    with pytest.raises(InputError, match=r"axis 2 of 'input' cannot stay open: the program was exported with 16"):
        dp.trace(closed, IMAGE, dynamic_shapes="2")


def test_the_path_that_a_program_holds_is_not_taken_for_other_lengths():
    shapes = ({0: Dim.DYNAMIC, 2: Dim.AUTO, 3: Dim.AUTO},)
    program = torch.export.export(UNet("pads").eval(), (IMAGE,), dynamic_shapes=shapes)
    assert [a.step for a in dp.trace(program, IMAGE).open_axes] == [1, 2]


def test_an_adaptive_pooling_that_onnx_lacks_is_refused_with_the_axis(tmp_path):
    graph = dp.trace(Pooled(5).eval(), torch.randn(2, 3, 20, 20), dynamic_shapes="2,3")
    with pytest.raises(TraceError, match=r"axis 2 of 'x'") as refused:
        exporters.get("onnx")().write(
            graph.module, graph.example_inputs, tmp_path / "m.onnx", dynamic_batch=True, open_axes=graph.open_axes
        )
    assert "--dynamic none" in refused.value.hint


def test_a_file_that_is_wrong_at_another_length_only_fails_verification(tmp_path):
    # Twice the mean over 16 rows is the sum over 8: a constant that only the example's height hides.
    class Sums(nn.Module):
        def forward(self, x):
            return x.sum((2, 3)) / 384

    class Means(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    axes = dp.trace(segmenter(), IMAGE, dynamic_shapes="2,3").open_axes
    path = tmp_path / "m.onnx"
    exporters.get("onnx")().write(Sums(), (IMAGE,), path, dynamic_batch=True, open_axes=axes)
    feeds = [[IMAGE.numpy()]]
    assert all(c.passed for c in verify_exports(Means(), {"m.onnx": path}, feeds))
    found = verify_exports(Means(), {"m.onnx": path}, feeds, open_axes=axes)
    valid, *compared = found
    assert valid.passed, "the file itself is right"
    assert not any(c.passed for c in compared)
    assert "height 12" in compared[0].detail


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "'a' is no axis"),
        ("", "'' is no axis"),
        ("2=8", "'2=8' is no axis"),
        ("0", "axis 0 is the batch"),
        (":2", "names no input"),
        ("2=0..8", "a length is at least 1"),
        ("2=8..8", "holds no two lengths"),
        ("2,auto", "'auto' is no axis"),
        ("-1", "'-1' is no axis"),
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(text, said):
    with pytest.raises(RecipeError, match=said) as refused:
        ModelRecipe(dynamic=(text,))
    assert refused.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("y:2", "no input 'y'"),
        ("7", "no input has an axis 7"),
        ("2=20..40", "the example has length 16 .* outside of the range"),
    ],
)
def test_axes_that_the_inputs_do_not_have_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        dp.trace(segmenter(), IMAGE, dynamic_shapes=text)


def test_the_forms_of_a_request_mean_the_same():
    model = segmenter()
    want = (Asked("input", 2, 8, 512), Asked("input", 3))
    assert parse(("input:2=8..512,3",)) == want
    height = Dim("h", min=8, max=512)
    for shapes in ({"input": {0: Dim("n"), 2: height, 3: Dim.AUTO}}, ({2: height, 3: Dim.DYNAMIC},)):
        assert requested(shapes, model, (IMAGE,)) == want
    assert parse(tuple(map(str, want))) == want
    with pytest.raises(InputError, match="does not fit the inputs input"):
        requested({"z": {2: height}}, model, (IMAGE,))


def test_a_model_is_fixed_at_one_length_for_kernels_of_one_size(tmp_path):
    axes = dp.trace(segmenter(), IMAGE, dynamic_shapes="2,3").open_axes
    exporters.get("onnx")().write(segmenter(), (IMAGE,), tmp_path / "m.onnx", dynamic_batch=True, open_axes=axes)
    fixed = onnx.shape_inference.infer_shapes(fixed_at(onnx.load(tmp_path / "m.onnx"), {"height": 16, "width": 24}))
    for value in (*fixed.graph.input, *fixed.graph.output, *fixed.graph.value_info):
        dims = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        assert dims[0] == "batch"
        assert dims[2:] == [16, 24]


def test_a_build_keeps_axes_open_in_every_file_and_says_which(tmp_path, monkeypatch):
    shapes = ({0: Dim.DYNAMIC, 2: Dim("h", min=8, max=64), 3: Dim("w", min=8, max=64)},)
    torch.export.save(torch.export.export(segmenter(), (IMAGE,), dynamic_shapes=shapes), tmp_path / "open.pt2")
    monkeypatch.chdir(tmp_path)
    common = ("--macs", "0.6", "--step", "2", "--seconds", "1", "--runtime", "onnxruntime")
    done = run_cli("compile", "open.pt2", *common, "--out", "b", folder=tmp_path)
    assert done.code == 0, done.err
    manifest = json.loads(Path("b/manifest.json").read_text())
    (given,) = manifest["inputs"]
    assert given["example"] == [1, 3, 16, 24]
    assert [(a["axis"], a["name"], a["min"], a["max"], a["example"]) for a in given["open_axes"]] == [
        (2, "height", 8, 64, 16),
        (3, "width", 8, 64, 24),
    ]
    report = json.loads(Path("b/report.json").read_text())
    assert all(check["passed"] for check in report["verification"])
    assert sum("height 12" in check["name"] + check["detail"] for check in report["verification"]) >= 5
    assert any("timed at the example's size 3x16x24" in warning for warning in report["warnings"])
    x = np.random.default_rng(0).standard_normal((2, 3, 31, 17), dtype=np.float32)
    want = torch.export.load("b/model.pt2").module()(torch.from_numpy(x)).detach().numpy()
    for name in ("model.fp32.onnx", "model.int8.onnx"):
        session = onnxruntime.InferenceSession(f"b/{name}")
        assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
        (got,) = session.run(None, {"input": x})
        assert np.linalg.norm(got - want) < 0.2 * np.linalg.norm(want)
    assert openvino.Core().read_model("b/model.int8.xml").input(0).partial_shape.to_string() == "[?,3,?,?]"

    timed = run_cli("bench", "b/model.fp32.onnx", "--seconds", "1", "--runtime", "onnxruntime", folder=tmp_path)
    assert timed.code == 0, timed.err
    assert "input=1,3,16,24" in timed.err


def test_a_plan_shows_open_axes_as_text_and_as_json(tmp_path, monkeypatch):
    torch.export.save(
        torch.export.export(segmenter(), (IMAGE,), dynamic_shapes=({0: Dim.DYNAMIC, 3: Dim.AUTO},)),
        tmp_path / "open.pt2",
    )
    monkeypatch.chdir(tmp_path)
    shown = run_cli("plan", "open.pt2", "--json", folder=tmp_path)
    assert [a["name"] for a in json.loads(shown.out)["open_axes"]] == ["width"]
    assert "width (axis 3 of 'input', any length)" in run_cli("plan", "open.pt2", folder=tmp_path).out
    run_cli("plan", "open.pt2", "--dynamic", "2", folder=tmp_path).assert_error(
        2, "axis 2 of 'input' cannot stay open"
    )
    run_cli("plan", "open.pt2", "--dynamic", "x", folder=tmp_path).assert_error(2, "is no axis")


def test_json_has_no_more_than_plain_values():
    axes = dp.trace(segmenter(), IMAGE, dynamic_shapes="2=8..64").open_axes
    assert json.loads(json.dumps(as_json(axes))) == [
        {
            "input": "input",
            "axis": 2,
            "name": "height",
            "example": 16,
            "checked_at": 12,
            "min": 8,
            "max": 64,
            "step": 1,
        }
    ]


class RowsAndColumns(nn.Module):
    """An LSTM over every row of an image: its batch, and so its states, depend on the height."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.rows, self.out = nn.Conv2d(3, 8, 1), nn.LSTM(8, 6, batch_first=True), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.into(x).permute(0, 2, 3, 1)
        n, height, width, channels = y.shape
        y = self.rows(y.reshape(n * height, width, channels))[0]
        return self.out(y.reshape(n, height, width, -1).permute(0, 3, 1, 2))


def test_states_of_another_size_are_refused_before_torch_reads_beyond_their_end() -> None:
    lstm = nn.LSTM(4, 3, batch_first=True).eval()

    class Raw(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states = [torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)]
            weights = [p.detach() for p in lstm.parameters()]
            return torch.ops.aten.lstm.input(x, states, weights, True, 1, 0.0, False, False, True)[0]

    torch.testing.assert_close(run(Raw(), (torch.ones(2, 7, 4),)), lstm(torch.ones(2, 7, 4))[0].detach())
    with pytest.raises(ValueError, match=r"LSTM of 5 samples has states of shape \[2, 3\]"):
        run(Raw(), (torch.ones(5, 7, 4),))


def test_an_lstm_over_the_rows_of_an_image_runs_at_other_sizes() -> None:
    torch.manual_seed(0)
    model = RowsAndColumns().eval()
    graph = dp.trace(model, torch.randn(2, 3, 6, 9))
    other = torch.randn(3, 3, 11, 5)
    torch.testing.assert_close(graph.module(other), model(other))
