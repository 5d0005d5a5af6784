"""Early stopping: the best epoch's weights, the same after an interruption."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from deploypruner.train.finetune import finetune
from deploypruner.train.precision import chosen_amp, cpu_has_bf16
from tests.recover_models import QUICK, Images, net, same

pytestmark = pytest.mark.slow

PATIENT = replace(QUICK, epochs=8, patience=2, ema=0.5)


def scored(*scores: float, stop_at: int = 0) -> tuple[Callable[[nn.Module], float], list[nn.Module]]:
    """A validation with these results, and the models it saw."""
    seen: list[nn.Module] = []

    def validate(module: nn.Module) -> float:
        seen.append(copy.deepcopy(module))
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return scores[len(seen) - 1]

    return validate, seen


def test_it_stops_when_patience_runs_out_and_holds_the_best() -> None:
    model = net()
    validate, seen = scored(10, 30, 20, 30)
    history = finetune(model, None, Images(), PATIENT, validate=validate)
    assert [record.score for record in history.epochs] == [10, 30, 20, 30]
    assert (history.held, history.score) == (2, 30)
    assert same(model, seen[1])
    assert not same(model, seen[3])


def test_without_patience_all_epochs_run_and_the_last_is_held() -> None:
    model = net()
    validate, seen = scored(30, 20, 10)
    history = finetune(model, None, Images(), QUICK, validate=validate)
    assert (history.held, history.score) == (3, 10)
    assert same(model, seen[2])
    assert len(finetune(net(), None, Images(), PATIENT).epochs) == 8  # nothing to judge by


@pytest.mark.parametrize("stop_at", [3, 4])
def test_an_interrupted_run_stops_at_the_same_epoch_with_the_same_bits(tmp_path: Path, stop_at: int) -> None:
    whole, resumed, scores = net(), net(), (10.0, 30.0, 20.0, 25.0)
    expected = finetune(whole, None, Images(), PATIENT, validate=scored(*scores)[0])
    validate, _ = scored(*scores, stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        finetune(net(), None, Images(), PATIENT, validate=validate, checkpoint=tmp_path / "run")
    validate, _ = scored(*scores[stop_at - 1 :])
    history = finetune(resumed, None, Images(), PATIENT, validate=validate, checkpoint=tmp_path / "run")
    assert history == expected
    assert history.held == 2
    assert same(whole, resumed)


def test_auto_means_bf16_where_the_cpu_multiplies_in_it() -> None:
    plain, depthwise = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
    assert chosen_amp("auto", plain) == ("bf16" if cpu_has_bf16() else "off")
    assert chosen_amp("auto", depthwise) == "off"
    assert chosen_amp("auto", plain.to("meta")) == "off"
    assert chosen_amp("fp16", depthwise) == "fp16"
