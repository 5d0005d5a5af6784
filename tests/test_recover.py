from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import Batch
from deploypruner.train.finetune import finetune
from deploypruner.train.learning_rate import learning_rate
from deploypruner.train.validate import top1_percent
from tests.recover_models import CLASSES, QUICK, Images, net, same

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors; more threads wait for each other
    yield
    torch.set_num_threads(threads)


def test_finetuning_learns_from_labels() -> None:
    model = net()
    before = top1_percent(model, Images())
    history = finetune(model, None, Images(), QUICK, validate=lambda module: top1_percent(module, Images()))
    assert history.score is not None
    assert history.score > before + 20
    assert history.score == top1_percent(model, Images())  # the last epoch's weights, not the best's
    assert [record.epoch for record in history.epochs] == [1, 2, 3]


def test_finetuning_without_labels_approaches_the_teacher() -> None:
    teacher = net(seed=1, dropout=0.0)
    finetune(teacher, None, Images(), QUICK)
    student, frozen = net(seed=2, dropout=0.0), copy.deepcopy(teacher)
    history = finetune(student, teacher, Images(labelled=False), QUICK)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    assert same(teacher, frozen)
    assert teacher.training


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = net(), net(), net()
    torch.manual_seed(1)
    history = finetune(first, None, Images(), QUICK)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert finetune(again, None, Images(), QUICK) == history
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    finetune(other, None, Images(), FinetuneSettings(epochs=3, batch_size=8, lr=0.05, seed=100))
    assert not same(first, other)


class StopAfter:
    """Interrupts the run, as Ctrl-C would, at the given step."""

    def __init__(self, steps: int) -> None:
        self.left, self.closed = steps, False

    def start(self, total: int, label: str) -> None: ...

    def advance(self, n: int = 1, text: str = "") -> None:
        self.left -= n
        if self.left <= 0:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("steps", [3, 7, 12])  # five steps an epoch
def test_an_interrupted_run_ends_in_the_bits_of_an_uninterrupted_one(tmp_path: Path, steps: int) -> None:
    teacher, whole, resumed = net(seed=5), net(), net()
    expected = finetune(whole, teacher, Images(), QUICK)
    stop = StopAfter(steps)
    with pytest.raises(KeyboardInterrupt):
        finetune(net(), teacher, Images(), QUICK, checkpoint=tmp_path / "run.safetensors", progress=stop)
    assert stop.closed
    history = finetune(resumed, teacher, Images(), QUICK, checkpoint=tmp_path / "run.safetensors")
    assert history.resumed == (steps - 1) // 5
    assert history == expected
    assert same(whole, resumed)


def test_a_finished_run_is_read_back_without_training(tmp_path: Path) -> None:
    first, again = net(), net()
    history = finetune(first, None, Images(), QUICK, checkpoint=tmp_path / "run")
    repeated = finetune(again, None, Images(), QUICK, checkpoint=tmp_path / "run")
    assert (repeated, repeated.resumed) == (history, 3)
    assert same(first, again)


def another_rate(path: Path) -> None:
    finetune(net(), None, Images(), FinetuneSettings(epochs=3, batch_size=8, lr=0.01), checkpoint=path)


def another_start(path: Path) -> None:
    finetune(net(seed=9), None, Images(), QUICK, checkpoint=path)


def half_a_file(path: Path) -> None:
    finetune(net(), None, Images(), QUICK, checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("leave", [another_rate, another_start, half_a_file])
def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_used(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    path = tmp_path / "run"
    leave(path)
    expected, model = net(), net()
    history = finetune(expected, None, Images(), QUICK)
    again = finetune(model, None, Images(), QUICK, checkpoint=path)
    assert (again, again.resumed) == (history, 0)
    assert same(model, expected)


def test_the_learning_rate_rises_to_its_peak_and_falls_by_half_a_cosine() -> None:
    settings = FinetuneSettings(lr=1.0, warmup=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # half-way through the eight falling steps
    assert rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_weight_decay_shrinks_matrices_and_not_norms_or_biases() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, CLASSES))
    nn.init.zeros_(model[2].weight)  # no gradient reaches the first two layers through zeros
    teacher = copy.deepcopy(model)
    before = copy.deepcopy(model)

    class Points(Images):
        def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
            yield (torch.tensor([[1.0, 2.0], [3.0, -1.0]]),), None

    settings = FinetuneSettings(epochs=1, lr=0.1, warmup=0.0, weight_decay=0.5, momentum=0.5)
    finetune(model, teacher, Points(labelled=False), settings)
    assert torch.equal(model[1].weight, before[1].weight)
    assert torch.equal(model[0].bias, before[0].bias)
    # Nesterov's first step: lr * (1 + momentum) * decay * weight.
    torch.testing.assert_close(model[0].weight, before[0].weight * (1 - 0.1 * 1.5 * 0.5))


def test_a_loss_that_is_not_finite_names_epoch_and_batch_and_keeps_the_epoch_before() -> None:
    model, expected = net(), net()
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=0.05, seed=10)
    with pytest.raises(InputError, match=r"loss became nan in epoch 2, batch 1[\s\S]*lower the learning rate"):
        finetune(model, None, Images(poison=11), settings)
    with pytest.raises(InputError, match="epoch 2"):
        finetune(expected, None, Images(poison=11), settings)
    assert same(model, expected)
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert not same(model, net())
    assert model.training


def test_a_last_batch_of_one_sample_is_skipped() -> None:
    with_one, without = net(), net()
    assert finetune(with_one, None, Images(count=17), QUICK).epochs[0].epoch == 1
    assert int(with_one.bn.num_batches_tracked) == 3 * 2
    finetune(without, None, Images(count=18), QUICK)
    assert int(without.bn.num_batches_tracked) == 3 * 3


def test_memory_order_changes_the_result_by_rounding_only() -> None:
    rows, columns = net(dropout=0.0), net(dropout=0.0)
    finetune(rows, None, Images(), QUICK)
    finetune(columns, None, Images(), FinetuneSettings(epochs=3, batch_size=8, lr=0.05, channels_last=True))
    torch.testing.assert_close(rows.state_dict(), columns.state_dict(), rtol=1e-3, atol=1e-4)
    assert columns.conv.weight.is_contiguous()


def test_frozen_parameters_stay() -> None:
    model = net()
    model.conv.requires_grad_(False)
    before = copy.deepcopy(model)
    finetune(model, None, Images(), QUICK)
    assert torch.equal(model.conv.weight, before.conv.weight)
    assert not torch.equal(model.fc.weight, before.fc.weight)


def test_learning_from_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="no labels and no dense model to learn from"):
        finetune(net(), None, Images(labelled=False), QUICK)
    with pytest.raises(InputError, match="training data has no samples"):
        finetune(net(), None, Images(count=0), QUICK)
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        finetune(net().requires_grad_(False), None, Images(), QUICK)
    with pytest.raises(InputError, match="accuracy needs labels"):
        top1_percent(net(), Images(labelled=False))


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("lr", 0.0), ("lr", math.nan), ("distill", 1.5), ("warmup", 1.0)]
)
def test_a_setting_out_of_range_is_named_with_its_value(name: str, value: float) -> None:
    with pytest.raises(RecipeError, match=rf"{name} must be .*, got {value}"):
        FinetuneSettings(**{name: value})


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "run"
    finetune(net(), None, Images(), QUICK, checkpoint=path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])  # the safetensors header
    assert json.loads(header["__metadata__"]["epochs"])[2]["epoch"] == 3
    assert os.listdir(tmp_path) == ["run"]
