"""Defaults of training follow from data, gap and the measured time of a step."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.optimizers import default_rate
from deploypruner.train.budget import recovery_defaults, time_step
from tests.recover_models import QUICK, Images, net, same


def outlook(settings: FinetuneSettings | None = None, *, seconds: float = 0.01, **about):
    about = {"samples": 50_000, "labelled": True, "gap": 10.0, **about}
    return recovery_defaults(settings or FinetuneSettings(), seconds_per_step=lambda _: seconds, **about)


def test_labelled_data_is_seen_as_often_as_the_gap_asks_for() -> None:
    found = outlook()
    assert (found.settings.epochs, found.steps) == (8, 391)  # 10 points x 40,000 images / 50,000
    assert found.settings.patience == 3
    assert found.settings.lr == default_rate("sgd")
    assert outlook(gap=30.0).settings.epochs == 20  # a million images are enough
    small = outlook(gap=0.5).settings
    assert (small.epochs, small.lr) == (2, default_rate("sgd") / 4)
    assert outlook(samples=1000).settings.epochs == 60
    assert outlook(gap=None, labelled=False).settings.epochs == 8
    assert outlook(gap=-3.0).settings.epochs == 2  # already better than the dense model


def test_a_few_images_without_labels_are_mimicked_for_two_thousand_steps_or_twenty_minutes() -> None:
    found = outlook(samples=450, labelled=False, gap=None)
    settings = found.settings
    assert (settings.mimic, settings.freeze_batchnorm, settings.schedule) == (1.0, True, "step")
    assert (settings.batch_size, found.steps, settings.epochs) == (32, 15, 142)  # 64,000 images / 450
    assert (settings.optimizer, settings.lr, settings.patience) == ("adamw", 1e-4, 142)
    slow = outlook(samples=450, labelled=False, gap=None, seconds=4.0)
    assert slow.settings.epochs == 20
    assert slow.seconds == 20 * 15 * 4.0 <= 20 * 60
    assert outlook(samples=3, labelled=False, gap=None).settings.batch_size == 3


def test_time_bounds_the_epochs_and_one_always_runs() -> None:
    assert outlook(seconds=1.0, minutes=14).settings.epochs == 2
    assert outlook(seconds=100.0).settings.epochs == 1


def test_what_the_user_said_stays() -> None:
    asked = FinetuneSettings(lr=0.3, batch_size=16, mimic=0.5, patience=7)
    few = outlook(asked, samples=450, labelled=False, gap=None).settings
    assert (few.lr, few.optimizer, few.batch_size, few.mimic) == (0.3, "sgd", 16, 0.5)
    assert outlook(asked).settings.patience == 7
    assert outlook(asked, gap=0.1).settings.lr == 0.3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2047, "3 epochs x 391 steps, about 4 min"), (0.02, "3 epochs x 391 steps, about 23 s")],
)
def test_it_is_said_before(seconds: float, text: str) -> None:
    assert replace(outlook(gap=3.75, seconds=seconds)).text == text


def test_timing_trains_a_copy_on_three_batches() -> None:
    student, before, data = net(), net(), Images()
    frozen = copy.deepcopy(net(seed=1))
    assert 0 < time_step(student, frozen, data, QUICK) < 5
    assert same(student, before)
    assert 0 < time_step(student, None, Images(count=8), QUICK) < 5  # one batch is all there is
