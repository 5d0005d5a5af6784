"""A plan.json or weights that are not what a build wrote: refused as bad input, whatever was changed."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import deploypruner as dp
from deploypruner.errors import InputError
from tests.builds import tiny

_OTHERS = (None, -1, 10**9, 2**70, 0.5, math.nan, "x", True, [], {}, [0, 0], [[1]], {"shape": [1], "dtype": "load"})


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `restore` reads of a build."""
    root = tmp_path_factory.mktemp("build")
    result = dp.prune(tiny(), torch.zeros(2, 3, 16, 16), macs=0.6, step=1)
    (root / "plan.json").write_text(json.dumps(result.plan.to_json()))
    save_file(result.module.state_dict(), root / "weights.safetensors")
    return root


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*path, key), *_places(item, (*path, key))]]


def test_every_changed_plan_is_restored_or_refused(build: Path, tmp_path: Path) -> None:
    document = json.loads((build / "plan.json").read_text())
    rng = np.random.default_rng(0)
    places = _places(document)
    (tmp_path / "weights.safetensors").write_bytes((build / "weights.safetensors").read_bytes())
    outcomes = {"restored": 0, "refused": 0}
    for number in range(60):
        changed = copy.deepcopy(document)
        path = places[rng.integers(len(places))]
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        if number % 4 == 0 and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = _OTHERS[number % len(_OTHERS)]
        (tmp_path / "plan.json").write_text(json.dumps(changed))
        try:
            dp.restore(tiny(), tmp_path)
            outcomes["restored"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert outcomes["refused"] >= 45, outcomes


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ([0, 0, 1], "not ascending from 0 to"),
        ([1, 0], "not ascending"),
        ([-1, 0], "not ascending"),
        ([0, 999], "not ascending"),
        ([], "no list of channels"),
        ([0, 1.0], "no list of channels"),
    ],
)
def test_channels_are_in_range_and_kept_once(build: Path, tmp_path: Path, keep: list[Any], said: str) -> None:
    document = json.loads((build / "plan.json").read_text())
    document["groups"][0]["keep"] = keep
    (tmp_path / "plan.json").write_text(json.dumps(document))
    (tmp_path / "weights.safetensors").write_bytes((build / "weights.safetensors").read_bytes())
    with pytest.raises(InputError, match=f"not a plan: group '.*{said}"):
        dp.restore(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("[]", "is damaged: it is no JSON object"),
        ("null", "is damaged: it is no JSON object"),
        ("[" * 100_000, "is not valid JSON: nested too deeply"),
        ("{", "is not valid JSON: expecting property name"),
        ('{"groups": [{"keep": [0, NaN]}]}', "is not valid JSON: NaN is no number of JSON"),
        ("\udcff", "is not UTF-8 text"),
    ],
)
def test_what_is_no_object_is_refused(build: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=rf"plan.* '.*plan\.json' {said}[\s\S]*hint: compile again"):
        dp.restore(tiny(), tmp_path)


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_a_file_that_the_manifest_knows_otherwise_is_refused(build: Path, tmp_path: Path, name: str) -> None:
    for file in build.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps({"deploypruner": "build", "sha256": {name: "0" * 64}}))
    with pytest.raises(InputError, match=rf"{name} is not what its build wrote: its sha256 differs"):
        dp.restore(tiny(), tmp_path)


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("{", "is not valid JSON"), ("[]", "is damaged")])
def test_a_damaged_manifest_is_not_taken_for_none(build: Path, tmp_path: Path, text: str, said: str) -> None:
    for name in ("plan.json", "weights.safetensors"):
        (tmp_path / name).write_bytes((build / name).read_bytes())
    dp.restore(tiny(), tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=rf"manifest\.json' {said}[\s\S]*hint: copy the build again"):
        dp.restore(tiny(), tmp_path)
