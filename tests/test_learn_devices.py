"""Learning goes on as planned with averaged weights, 16 bits and two processes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploypruner.channels.learned import learn
from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph.execute.parameter_override import holding
from tests.recover_models import Images
from tests.test_learn import KINDS, SETTINGS, regime, small, widths

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"devices": 2, "amp": "bf16"}])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "iterative"])  # its widths are its own
def test_the_plans_widths_are_kept_and_the_removal_is_proved(kind: str, change: dict[str, object]) -> None:
    if "devices" in change:
        pytest.importorskip("lightning_fabric")
    graph = small()
    chosen = regime(graph, kind)
    learned = learn(graph, Images(), chosen, replace(SETTINGS, **change))
    assert widths(learned.plan) == widths(chosen.plan)
    with holding(graph, learned.weights):
        _, checks = remove_and_prove(graph, learned.plan)
    assert all(check.passed for check in checks)
