"""Mutated inputs of every kind end in a clear error or are accepted: no traceback, signal, hang or full memory.

A small part runs each time. `DEPLOYPRUNER_FUZZ=3000 pytest tests/test_fuzz.py` tries that many, and
`DEPLOYPRUNER_FUZZ_SEED` others; see `tests/fuzzing.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzzing import FAULTS, Case, classify, run_case

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COUNT = int(os.environ.get("DEPLOYPRUNER_FUZZ", "60"))
SEED = os.environ.get("DEPLOYPRUNER_FUZZ_SEED", "3")
# Of all cases; what takes the longest gets the fewest.
SHARES = {
    "recipe": 15,
    "report": 15,
    "npz": 14,
    "weights": 13,
    "plan": 13,
    "images": 10,
    "pt2": 8,
    "arguments": 7,
    "onnx": 5,
    "classes": 10,
    "metric": 10,
    "build": 8,
    "environment": 5,
    "ir": 4,
}


def test_no_input_ends_in_a_traceback_a_signal_or_a_hang(tmp_path):
    total = sum(SHARES.values())
    kinds = [f"{kind}={max(1, COUNT * share // total)}" for kind, share in SHARES.items()]
    command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", "--folder", str(tmp_path / "f"), "--seed", SEED]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--kinds", *kinds], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["faults"] == [], "\n\n".join(found["faults"])[:20_000]
    counts = found["counts"]
    assert set(counts) == set(SHARES)
    # A fuzzer that only ever hears "no" tests the first check, and one that never does tests nothing.
    assert sum(kind.get("clear error", 0) for kind in counts.values()) > COUNT / 3
    assert sum(kind.get("accepted", 0) for kind in counts.values()) > COUNT / 20


def test_the_fuzzer_tells_every_outcome_from_the_others(tmp_path):
    clear = "error: no file\n\nhint: name one\n"
    assert classify(2, "", clear, tmp_path).outcome == "clear error"
    assert classify(0, "table\n", "", tmp_path).outcome == "accepted"
    assert classify(1, "", "Traceback (most recent call last):\n", tmp_path).outcome == "traceback"
    assert classify(2, "", "error: no file\n", tmp_path).outcome == "unclear"
    assert classify(2, "", clear + "\x1b[31m", tmp_path).outcome == "unclear"
    (tmp_path / "page.html").write_text("<script>fuzz</script>")
    assert classify(0, "", "", tmp_path, ("page.html",)).outcome == "unclear"


@pytest.mark.parametrize(("code", "outcome"), [("raise KeyError", "traceback"), ("os.abort()", "signal")])
def test_a_case_that_fails_does_not_take_the_fuzzer_with_it(tmp_path, code, outcome):
    case = Case(lambda: exec(code, {"os": os}), "a case")
    assert run_case(case, tmp_path).outcome == outcome
    assert outcome in FAULTS
