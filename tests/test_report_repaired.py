"""What the repair did, in one sentence."""

from __future__ import annotations

import pytest

from deploypruner.report.repaired import repair_sentence, settings_sentence

EQUALIZED = {"name": "equalization", "done": "3 sets", "before": 1.37, "after": 0.02, "kept": True}
ROUNDED = {"name": "rounding", "done": "4 of 5 layers", "before": 0.02, "after": 0.01, "kept": True}
SKIPPED = {"name": "calibration", "done": "mse for 2", "before": 0.02, "after": 0.03, "kept": False}


def test_what_was_kept_is_named_with_the_error_before_and_after():
    assert repair_sentence([EQUALIZED, SKIPPED, ROUNDED]) == (
        "equalization (3 sets); rounding (4 of 5 layers): int8 outputs are 1.00 % off on samples apart instead of "
        "1.37 times their spread"
    )
    assert repair_sentence([SKIPPED]) == "int8 outputs are 2.00 % off on samples apart, and no repair helps"
    assert "without bound" in repair_sentence([{**EQUALIZED, "before": 1e30}])
    assert repair_sentence([]) == ""


@pytest.mark.parametrize("settings", [{}, {"quantization": {}}, {"quantization": {"pruned": {"repair": [{}]}}}])
def test_a_report_without_it_says_nothing(settings):
    assert settings_sentence(settings) == ""


def test_a_report_with_it_says_what_the_pruned_model_got():
    said = settings_sentence({"quantization": {"pruned": {"repair": [ROUNDED]}}})
    assert said.startswith("rounding (4 of 5 layers)")
