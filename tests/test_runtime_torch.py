"""PyTorch as a runtime: torch.export programs of any origin, operator by operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.build.timed import make_jobs
from deploypruner.errors import InputError, RecipeError
from deploypruner.records import Artifact, TensorSpec
from deploypruner.runtime import Session, default_runtimes, runtimes

pytestmark = pytest.mark.slow

X = np.array([[1.0, -2.0, 3.0]], dtype=np.float32)


class Two(nn.Module):
    """relu(x @ W) and its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.linear(x))
        return {"y": y, "total": y.sum()}


class Words(nn.Module):
    """Mean of the embeddings that the mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.table(ids) * mask.unsqueeze(-1)).sum(1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Opening sets torch's threads for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def open_two(folder: Path, *, dynamic: bool = True) -> Session:
    shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(Two().eval(), (torch.zeros(2 if dynamic else 1, 3),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "two.pt2")
    return runtimes.get("torch")().open(folder / "two.pt2", threads=1)


def test_outputs_by_hand_in_the_programs_order(tmp_path: Path) -> None:
    y, total = open_two(tmp_path).run([X])
    assert y.tolist() == [[4.0, 1.0]]
    assert total.tolist() == 5.0


def test_specs_name_shape_and_dtype_are_the_programs(tmp_path: Path) -> None:
    session = open_two(tmp_path)
    assert session.inputs == (TensorSpec("x", (None, 3), "float32"),)
    assert [(spec.shape, spec.dtype) for spec in session.outputs] == [((None, 2), "float32"), ((), "float32")]
    assert open_two(tmp_path, dynamic=False).inputs[0].shape == (1, 3)


def test_an_earlier_result_survives_a_later_run(tmp_path: Path) -> None:
    session = open_two(tmp_path)
    first = session.run([X])[0]
    session.run([np.zeros_like(X)])
    assert first.tolist() == [[4.0, 1.0]]


def test_a_prepared_call_can_be_repeated_and_computes_no_gradients(tmp_path: Path) -> None:
    infer = open_two(tmp_path).prepare([X])
    infer()
    infer()
    assert not torch.is_inference_mode_enabled()


def test_threads_are_set_and_stated(tmp_path: Path) -> None:
    open_two(tmp_path)
    session = runtimes.get("torch")().open(tmp_path / "two.pt2", threads=2)
    assert torch.get_num_threads() == 2
    assert session.settings["num_threads"] == "2"


@pytest.mark.parametrize("by_name", [False, True])
def test_inputs_keep_the_structure_they_were_exported_with(tmp_path: Path, by_name: bool) -> None:
    model, ids, mask = Words().eval(), torch.tensor([[1, 2, 3]]), torch.tensor([[True, False, True]])
    kwargs = {"ids": ids, "mask": mask}
    program = torch.export.export(model, () if by_name else (ids, mask), kwargs if by_name else None)
    torch.export.save(program, tmp_path / "words.pt2")
    session = runtimes.get("torch")().open(tmp_path / "words.pt2")
    assert session.inputs == (TensorSpec("ids", (1, 3), "int64"), TensorSpec("mask", (1, 3), "bool"))
    (found,) = session.run([ids.numpy(), mask.numpy()])
    np.testing.assert_allclose(found, model(ids, mask).detach().numpy())


def test_a_batch_the_program_does_not_take_is_named_with_a_hint(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=4)
    program = torch.export.export(Two().eval(), (torch.zeros(3, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "m.pt2")
    session = runtimes.get("torch")().open(tmp_path / "m.pt2")
    assert session.run([np.repeat(X, 4, axis=0)])[0].shape == (4, 2)
    with pytest.raises(InputError, match=r"the program does not run on x=\[9, 3\][\s\S]*--input-shape"):
        session.prepare([np.repeat(X, 9, axis=0)])


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, r"is empty \(0 bytes\)[\s\S]*hint: copy or download it again"),
        (0.5, r"is not read: is no archive[\s\S]*hint: export and save it again"),
    ],
)
def test_a_truncated_file_is_named_with_a_hint(tmp_path: Path, share: float, said: str) -> None:
    open_two(tmp_path)
    whole = (tmp_path / "two.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"cut\.pt2' {said}"):
        runtimes.get("torch")().open(tmp_path / "cut.pt2")


def test_what_it_cannot_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"PyTorch cannot open '.*m\.onnx'[\s\S]*hint: it opens \.pt2"):
        runtimes.get("torch")().open(tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match="threads must be >= 1, got 0"):
        runtimes.get("torch")().open(tmp_path / "m.pt2", threads=0)


def test_torch_is_measured_only_when_it_is_named() -> None:
    assert "torch" in set(runtimes)
    assert default_runtimes() == ("onnxruntime", "openvino")


def test_each_runtime_of_a_build_gets_the_files_it_opens() -> None:
    files = [("dense fp32", "onnx"), ("dense int8", "onnx"), ("dense fp32", "pt2"), ("pruned fp32", "pt2")]
    artifacts = [Artifact(name, Path(f"m.{kind}"), kind, "fp32") for name, kind in files]
    jobs = [
        (artifact.name, artifact.format, runtime) for artifact, runtime in make_jobs(artifacts, ["openvino", "torch"])
    ]
    assert jobs == [
        ("dense fp32", "onnx", "openvino"),
        ("dense int8", "onnx", "openvino"),
        ("dense fp32", "pt2", "torch"),
        ("pruned fp32", "pt2", "torch"),
    ]
