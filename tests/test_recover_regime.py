"""A regime's masks hold in every forward pass, in validation, in the end, and across a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploypruner.train.finetune import finetune
from deploypruner.train.regime import Regime
from tests.recover_models import QUICK, Images, interrupted_at, net, same

pytestmark = pytest.mark.slow


class EvenChannels(Regime):
    """Keeps the even channels of the convolution, and learns one number: a common scale of them."""

    def begin(self, student: nn.Module, steps: int) -> None:
        self.weight = student.get_parameter("conv.weight")
        self.scale = nn.Parameter(torch.ones(()))

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": [self.scale], "weight_decay": 0.0, "lr_scale": 0.1}]

    def weights(self, step: int) -> dict[str, Tensor]:
        return {"conv.weight": self.weight * self.mask * self.scale}

    def hard_weights(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.weights(0).items()}

    @property
    def mask(self) -> Tensor:
        return (torch.arange(len(self.weight)) % 2 == 0).float()[:, None, None, None]

    def state(self) -> dict[str, Tensor]:
        return {"scale": self.scale}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.scale.data.copy_(state["scale"])


def test_validation_and_the_end_see_the_hard_weights_and_training_goes_on_with_the_soft_ones() -> None:
    seen: list[Tensor] = []

    def validate(module: nn.Module) -> float:
        seen.append(module.get_parameter("conv.weight").detach().clone())
        return 0.0

    student, regime = net(), EvenChannels()
    finetune(student, None, Images(), QUICK, validate=validate, regime=regime)
    assert all(float(weight[1::2].abs().max()) == 0 and float(weight[0::2].abs().min()) > 0 for weight in seen)
    assert torch.equal(student.conv.weight.detach(), seen[-1])
    assert float(regime.scale.detach()) != 1


def test_hard_weights_are_made_once_where_nothing_validates() -> None:
    made: list[None] = []

    class Counted(EvenChannels):
        def hard_weights(self) -> dict[str, Tensor]:
            made.append(None)
            return super().hard_weights()

    finetune(net(), None, Images(), QUICK, regime=Counted())
    assert QUICK.epochs > 1
    assert len(made) == 1


def test_what_was_hardened_is_soft_again_after_the_block() -> None:
    student, regime = net(), EvenChannels()
    soft = student.conv.weight.detach().clone()
    regime.begin(student, 1)
    with regime.hardened(student):
        assert float(student.conv.weight[1::2].detach().abs().max()) == 0
    assert torch.equal(student.conv.weight.detach(), soft)


def test_a_resumed_run_with_a_regime_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole, parts = net(), net()
    finetune(whole, None, Images(), QUICK, regime=EvenChannels())

    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        finetune(
            parts, None, Images(), QUICK, regime=EvenChannels(), checkpoint=checkpoint, validate=interrupted_at(2)
        )
    again = net()
    history = finetune(
        again, None, Images(), QUICK, regime=EvenChannels(), checkpoint=checkpoint, validate=lambda m: 0.0
    )
    assert history.resumed == 1
    assert same(whole, again)
