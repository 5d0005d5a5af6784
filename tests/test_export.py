from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploypruner.errors import InputError, TraceError
from deploypruner.export import exporters
from deploypruner.export.to_onnx import OPSET, Onnx
from deploypruner.export.to_openvino import write_ir
from deploypruner.runtime import opens, runtimes

pytestmark = pytest.mark.slow


class Small(nn.Module):
    """Convolution, batch norm with moving statistics, hard-swish, residual, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.Hardswish()
        self.mix = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y = self.act(self.bn(self.stem(image)))
        return self.head(self.drop((y + self.mix(y)).mean((2, 3))))


class Attention(nn.Module):
    """A contiguous() the ONNX decompositions drop, before a view that then no longer fits the strides."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).contiguous().view(b, n, 8)


class TwoInTwoOut(nn.Module):
    def forward(self, left: torch.Tensor, output: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left + output, "product": left * output}


def small() -> tuple[Small, torch.Tensor]:
    torch.manual_seed(0)
    model = Small()
    image = torch.randn(3, 3, 8, 8)
    for _ in range(3):
        model(image + 1)
    return model.eval(), image


def run(path: Path, runtime: str, *arrays: np.ndarray) -> list[np.ndarray]:
    return runtimes.get(runtime)().open(path, threads=1).run(list(arrays))


@pytest.fixture(scope="module")
def onnx_of_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, image = small()
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    Onnx().write(model, [image[:1]], path, dynamic_batch=True)
    return path


@pytest.mark.parametrize("name", list(exporters))
def test_every_exporter_writes_what_torch_computes_at_any_batch(name: str, tmp_path: Path) -> None:
    model, image = small()
    exporter = exporters.get(name)()
    path = tmp_path / f"small{exporter.suffix}"
    exporter.write(model, [image[:1]], path, dynamic_batch=True)
    want = model(image).detach().numpy()
    opening = [key for key in runtimes if opens(runtimes.get(key), path) and not runtimes.get(key).in_float32]
    assert opening, f"no runtime opens what '{name}' writes"
    for key in opening:
        for batch in (1, 2, 3):
            np.testing.assert_allclose(run(path, key, image[:batch].numpy())[0], want[:batch], atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_onnx_agrees_in_onnx_runtime_at_any_batch(onnx_of_small: Path, batch: int) -> None:
    model, image = small()
    got = run(onnx_of_small, "onnxruntime", image[:batch].numpy())[0]
    np.testing.assert_allclose(got, model(image[:batch]).detach().numpy(), atol=1e-5)


def test_batch_norm_is_folded_and_names_are_the_users(onnx_of_small: Path) -> None:
    model = onnx.load(onnx_of_small)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["output"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == OPSET


def test_onnx_file_names_no_source_file(onnx_of_small: Path) -> None:
    assert b".py" not in onnx_of_small.read_bytes()


def test_onnx_is_one_file_and_nothing_is_left_beside_it(onnx_of_small: Path) -> None:
    assert [path.name for path in onnx_of_small.parent.iterdir()] == ["small.onnx"]


def test_export_prints_nothing_and_warns_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, image = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Onnx().write(model, [image], tmp_path / "a.onnx", dynamic_batch=False)
    assert capfd.readouterr() == ("", "")


def test_export_leaves_mode_weights_and_statistics_alone(tmp_path: Path) -> None:
    model, image = small()
    model.train()
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "a.pt2"
    exporters.get("pt2")().write(model, [image], path, dynamic_batch=True)
    assert model.training
    assert model.bn.training
    torch.testing.assert_close(model.state_dict(), before)
    exported = torch.export.load(path).module()(image)
    torch.testing.assert_close(exported, model.eval()(image))


def test_a_captured_graph_module_exports_again(tmp_path: Path) -> None:
    model, image = small()
    graph = torch.export.export(model, (image,), strict=False).module()
    path = tmp_path / "a.pt2"
    exporters.get("pt2")().write(graph, [image], path, dynamic_batch=False)
    torch.testing.assert_close(torch.export.load(path).module()(image), model(image))


def test_attention_with_contiguous_view_exports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(3, 6, 8)
    path = tmp_path / "attention.onnx"
    Onnx().write(model, [x], path, dynamic_batch=True)
    for batch in (1, 3):
        got = run(path, "onnxruntime", x[:batch].numpy())[0]
        np.testing.assert_allclose(got, model(x[:batch]).detach().numpy(), atol=1e-5)


def test_several_outputs_are_numbered_and_avoid_input_names(tmp_path: Path) -> None:
    path = tmp_path / "two.onnx"
    x = torch.randn(2, 3)
    Onnx().write(TwoInTwoOut(), (x, x + 1), path, dynamic_batch=True)
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["left", "output"]
    assert [value.name for value in graph.output] == ["result_0", "result_1"]
    total, product = run(path, "onnxruntime", x.numpy(), (x + 1).numpy())
    np.testing.assert_allclose(total, (2 * x + 1).numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(product, (x * (x + 1)).numpy(), rtol=1e-6, atol=1e-6)


def test_a_model_that_fixes_its_batch_is_refused_with_a_hint(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1) if x.shape[0] == 2 else x.reshape(3, -1)

    with pytest.raises(TraceError, match=r"torch\.export cannot capture[\s\S]*dynamic_batch=False"):
        exporters.get("pt2")().write(Fixed(), [torch.randn(2, 6)], tmp_path / "a.pt2", dynamic_batch=True)


def test_an_operator_without_onnx_counterpart_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(TraceError, match=r"cannot be converted to ONNX: .*bessel_j0"):
        Onnx().write(Odd(), [torch.randn(2, 6)], tmp_path / "a.onnx", dynamic_batch=True)


def test_ir_keeps_fp32_weights_and_both_files_share_a_stem(onnx_of_small: Path, tmp_path: Path) -> None:
    write_ir(onnx_of_small, tmp_path / "m.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    image = small()[1].numpy()
    np.testing.assert_array_equal(run(tmp_path / "m.xml", "openvino", image), run(onnx_of_small, "openvino", image))


def test_a_broken_onnx_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"OpenVINO cannot read '.*broken\.onnx'"):
        write_ir(broken, tmp_path / "m.xml")


def test_a_program_on_a_full_disk_is_an_error_and_not_the_end_of_the_process():
    """torch's own writer of archives aborts."""
    with pytest.raises(OSError, match="No space left"):
        exporters.get("pt2")().write(nn.Linear(4, 2), [torch.randn(2, 4)], Path("/dev/full"), dynamic_batch=True)
