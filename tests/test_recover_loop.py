"""Averaged weights, mixed precision, optimizers by name, and what is left of a run that diverged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.optimizers import optimizers
from deploypruner.train import checkpoint
from deploypruner.train.ema import WeightAverage
from deploypruner.train.finetune import finetune
from deploypruner.train.regime import Regime
from tests.recover_models import QUICK, Images, interrupted_at, net, same

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------- averaged weights


def test_the_average_is_the_one_computed_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = WeightAverage(model, 0.25)
    for value in (2.0, 4.0):
        model.weight.data.fill_(value)
        average.update(model)
    # d = min(0.25, 2/11) then min(0.25, 3/12): 1 -> 2 - 2/11 -> 0.25 * (20/11) + 0.75 * 4
    with average.in_place(model):
        assert model.weight.item() == pytest.approx(0.25 * 20 / 11 + 3)
    assert model.weight.item() == 4.0


class Watch(Regime):
    """Remembers the weights after each step."""

    def begin(self, student: nn.Module, steps: int) -> None:
        self.student = student
        self.seen = [student.fc.weight.detach().clone()]

    def after_step(self, step: int) -> None:
        self.seen.append(self.student.fc.weight.detach().clone())


def test_validation_and_the_end_use_averaged_weights_and_training_goes_on_with_its_own() -> None:
    watch, plain_watch, validated = Watch(), Watch(), []

    def validate(module: nn.Module) -> float:
        validated.append(module.fc.weight.detach().clone())
        return 0.0

    student, plain = net(), net()
    finetune(student, None, Images(), replace(QUICK, ema=0.9), validate=validate, regime=watch)
    finetune(plain, None, Images(), QUICK, validate=lambda m: 0.0, regime=plain_watch)
    assert all(torch.equal(a, b) for a, b in zip(watch.seen, plain_watch.seen, strict=True))
    expected = watch.seen[0]
    for t, weight in enumerate(watch.seen[1:], 1):
        keep = min(0.9, (1 + t) / (10 + t))
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(student.fc.weight.detach(), expected)
    assert torch.equal(student.fc.weight.detach(), validated[-1])
    assert int(student.bn.num_batches_tracked) == 15
    assert not same(student, plain)


class LargestTwo(Regime):
    """Keeps the two output channels of the convolution that are largest now; those can change."""

    def begin(self, student: nn.Module, steps: int) -> None:
        self.weight = student.get_parameter("conv.weight")

    def mask(self) -> Tensor:
        size = self.weight.detach().flatten(1).norm(dim=1)
        return (size >= size.topk(2).values[-1]).float()[:, None, None, None]

    def weights(self, step: int) -> dict[str, Tensor]:
        return {"conv.weight": self.weight * (0.5 + 0.5 * self.mask())}

    def hard_weights(self) -> dict[str, Tensor]:
        return {"conv.weight": self.weight.detach() * self.mask()}


def test_masks_are_exact_on_averaged_weights() -> None:
    alive: list[int] = []

    def validate(module: nn.Module) -> float:
        alive.append(int((module.conv.weight.detach().flatten(1).norm(dim=1) > 0).sum()))
        return 0.0

    student = net()
    finetune(student, None, Images(), replace(QUICK, ema=0.9), validate=validate, regime=LargestTwo())
    assert alive == [2, 2, 2]
    assert int((student.conv.weight.detach().flatten(1).norm(dim=1) > 0).sum()) == 2


# ---------------------------------------------------------------------- mixed precision


class Gradients(Regime):
    def begin(self, student: nn.Module, steps: int) -> None:
        self.student, self.norms = student, []

    def after_backward(self, step: int) -> None:
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in self.student.parameters())
        self.norms.append(float(self.student.fc.weight.grad.norm()))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_computes_in_16_bits_and_keeps_weights_and_gradients_in_32(amp: str) -> None:
    exact, mixed, one, two = net(dropout=0.0), net(dropout=0.0), Gradients(), Gradients()
    dtypes: list[torch.dtype] = []
    handle = mixed.conv.register_forward_hook(lambda m, i, output: dtypes.append(output.dtype))
    finetune(exact, None, Images(), QUICK, regime=one)
    finetune(mixed, None, Images(), replace(QUICK, amp=amp), regime=two)
    handle.remove()
    assert set(dtypes) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]}
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    # Unscaled: the gradients have the size they have without a loss scale.
    assert two.norms[0] == pytest.approx(one.norms[0], rel=0.05)
    assert not same(exact, mixed)
    torch.testing.assert_close(mixed.conv.weight, exact.conv.weight, rtol=0.1, atol=0.05)


class OverflowsOnce(Gradients):
    """A weight so large in the first two steps that the scaled gradient does not fit into 16 bits."""

    def weights(self, step: int) -> dict[str, Tensor]:
        return {"fc.weight": self.student.fc.weight * (3e3 if step < 2 else 1)}

    def after_step(self, step: int) -> None:
        self.norms.append(-1.0)


def test_a_step_whose_scaled_gradients_overflow_is_skipped_whole(tmp_path: Path) -> None:
    regime, student = OverflowsOnce(), net(dropout=0.0)
    settings = replace(QUICK, amp="fp16", ema=0.5)
    finetune(student, None, Images(), settings, regime=regime, checkpoint=tmp_path / "run")
    assert 0 < len(regime.norms) // 2 < 15  # some of the 15 steps were skipped, with the regime's part in them
    assert all(bool(t.isfinite().all()) for t in student.state_dict().values())


# ---------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("name", sorted(optimizers()))
@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_every_optimizer_trains_and_a_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, name: str, ema: float
) -> None:
    settings = FinetuneSettings(epochs=3, batch_size=20, optimizer=name, ema=ema, amp="fp16" if ema else "off")
    whole, resumed = net(), net()

    expected = finetune(whole, net(1), Images(), settings, validate=lambda m: 0.0)
    with pytest.raises(KeyboardInterrupt):
        finetune(net(), net(1), Images(), settings, validate=interrupted_at(2), checkpoint=tmp_path / "run")
    history = finetune(resumed, net(1), Images(), settings, validate=lambda m: 0.0, checkpoint=tmp_path / "run")
    assert (history, history.resumed) == (expected, 1)
    assert same(whole, resumed)
    assert not same(whole, net())


def test_optimizer_parameters_reach_the_optimizer() -> None:
    plain, heavy, again = net(), net(), net()
    finetune(plain, None, Images(), replace(QUICK, optimizer="adamw", lr=None))
    settings = replace(QUICK, optimizer="AdamW", lr=None, optimizer_parameters={"betas": [0.5, 0.9], "eps": 1e-3})
    finetune(heavy, None, Images(), settings)
    finetune(again, None, Images(), replace(QUICK, optimizer_parameters={"nesterov": False, "momentum": 0.0}))
    assert not same(plain, heavy)
    assert settings.peak_lr == 1e-3
    assert FinetuneSettings().peak_lr == 0.02


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("adamm", {}, r"no optimizer called 'adamm' in torch.optim[\s\S]*did you mean 'adam'"),
        ("LBFGS", {}, r"optimizer 'LBFGS' evaluates the loss several times a step"),
        ("muon", {}, r"takes matrices only"),
        ("adamw", {"beta": 0.9}, r"optimizer 'adamw' has no parameter 'beta'[\s\S]*did you mean 'betas'"),
        ("adamw", {"lr": 0.1}, r"optimizer parameter 'lr' cannot be set[\s\S]*set lr beside it"),
        ("adamw", {"betas": [0.9, 7.0]}, r"optimizer 'adamw' refuses betas = \[0.9, 7.0\]"),
        ("rmsprop", {"alpha": "x"}, r"optimizer 'rmsprop' refuses alpha = 'x'"),
    ],
)
def test_an_optimizer_that_cannot_be_used_is_refused(name: str, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FinetuneSettings(optimizer=name, optimizer_parameters=parameters)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema": 1.0}, "ema must be in"),
        ({"devices": 0}, "devices must be >= 1"),
        ({"amp": "fp8"}, "no amp called 'fp8'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        FinetuneSettings(**settings)


# ---------------------------------------------------------------------- a run that diverged


def test_a_run_that_diverged_goes_on_from_its_last_epoch_with_a_lower_rate_only(tmp_path: Path) -> None:
    path = tmp_path / "run"
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=0.05, seed=10)
    with pytest.raises(InputError, match=r"loss became nan in epoch 2, batch 1[\s\S]*lower the learning rate"):
        finetune(net(), None, Images(poison=11), settings, checkpoint=path)
    kept = path.read_bytes()

    def resumed(lr: float) -> int:
        path.write_bytes(kept)
        return finetune(net(), None, Images(), replace(settings, lr=lr), checkpoint=path).resumed

    assert [resumed(lr) for lr in (0.1, 0.05, 0.01)] == [0, 1, 1]
    path.write_bytes(kept)
    assert finetune(net(), None, Images(), replace(settings, momentum=0.8), checkpoint=path).resumed == 0


def test_a_loss_that_is_not_finite_leaves_averages_and_masks_out_of_the_model() -> None:
    student = net()
    with pytest.raises(InputError, match="epoch 1, batch 1"):
        finetune(student, None, Images(poison=0), replace(QUICK, ema=0.9), regime=LargestTwo())
    assert same(student, net())
    assert math.isfinite(float(student.conv.weight.detach().sum()))


def test_a_changed_bit_in_a_checkpoint_is_noticed(tmp_path):
    path, who = tmp_path / "run", checkpoint.Identity("a", 0.1)
    state = checkpoint.State([checkpoint.EpochRecord(1, 0.5, 0.1, None)], {"w": torch.arange(8.0)}, {"step": 3})
    checkpoint.save(path, who, state)
    assert checkpoint.load(path, who).numbers == {"step": 3}
    whole = path.read_bytes()
    for at in (whole.index(b"step"), len(whole) - 5):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert checkpoint.load(path, who) is None
