"""A model that ONNX cannot hold is refused by the operation and its place, with the part that can be exported."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import deploypruner as dp
from deploypruner.errors import TraceError
from deploypruner.export.offered import with_offer
from deploypruner.export.to_onnx import Onnx

pytestmark = pytest.mark.slow


@torch.library.custom_op("deploypruner_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


REFUSED = {
    "linalg_eigh": lambda x: torch.linalg.eigh(x.unsqueeze(-1) * x.unsqueeze(-2) + torch.eye(8))[0],
    "twice": torch.ops.deploypruner_tests.twice,
    "linalg_inv_ex": lambda x: torch.linalg.inv(x.unsqueeze(-1) + 9 * torch.eye(8)).sum(-1),
}


class Head(nn.Module):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return REFUSED[self.operation](x)


class Net(nn.Module):
    """Three quarters of the parameters in the backbone: 8 x 4 + 8 of (8 x 4 + 8) + (2 x 4 + 4)."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.backbone, self.neck = nn.Linear(4, 8), nn.Linear(2, 4)
        self.head = Head(operation)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(self.neck(x)).relu())


def refused(model: nn.Module, x: Tensor, folder) -> TraceError:
    with pytest.raises(TraceError) as found:
        Onnx().write(model, (x,), folder / "m.onnx", dynamic_batch=True)
    return found.value


@pytest.mark.parametrize("operation", REFUSED)
def test_the_operation_its_module_and_the_largest_part_that_exports_are_named(operation, tmp_path):
    net, x = Net(operation).eval(), torch.ones(2, 2)
    error = with_offer(refused(net, x, tmp_path), Onnx(), net, (x,))
    assert re.search(rf"no counterpart of \w+\._?{operation} at \S+\.py:\d+ \(head\)", error.message)
    assert "its part 'backbone', which holds 77 % of the parameters, can be" in error.message  # 40 of 52
    assert "model.get_submodule('backbone')" in error.hint
    # What the hint says works.
    Onnx().write(net.get_submodule("backbone"), (torch.ones(2, 4),), tmp_path / "part.onnx", dynamic_batch=True)
    assert dp.prune(net, (x,), criterion="magnitude", macs=0.9, step=1).module(x).shape[0] == 2


def test_of_a_program_no_part_is_promised(tmp_path):
    net, x = Net("twice").eval(), torch.ones(2, 2)
    error = with_offer(refused(net, x, tmp_path), Onnx(), torch.export.export(net, (x,)), (x,))
    assert error.message.endswith("(head)")
    assert "dp.prune" in error.hint


def test_where_no_part_can_be_exported_that_is_said(tmp_path):
    net, x = Head("twice").eval(), torch.ones(2, 8)
    error = with_offer(refused(net, x, tmp_path), Onnx(), net, (x,))
    assert "no part with half of the parameters can be converted either" in error.message
