from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from deploypruner.errors import InputError
from deploypruner.train.hook import load_hook, run_hook
from tests.recover_models import CLASSES, net

pytestmark = pytest.mark.slow


@pytest.fixture
def training_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_training.py").write_text(
        "import torch\n"
        "RATE = 1\n"
        "def train(student, teacher, data):\n"
        "    with torch.no_grad():\n"
        "        student.fc.bias.fill_(data)\n"
    )
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield
    sys.path[:] = path
    for name in ("my_training", "my_broken"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("training_module")
def test_a_function_from_the_working_folder_trains_the_student() -> None:
    student, teacher = net().eval(), net()
    run_hook(load_hook("my_training:train"), student, teacher, 2.5)
    assert student.fc.bias.tolist() == [2.5] * CLASSES
    assert not student.training


@pytest.mark.usefixtures("training_module")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_training", r"not of the form package.module:function[\s\S]*train\(student, teacher, data\)"),
        ("my_trainin:train", r"no module called 'my_trainin'[\s\S]*run from the folder"),
        ("my_training:trian", r"has no function 'trian'[\s\S]*did you mean 'train'\?"),
        ("my_training:RATE", r"is a int, not a function"),
    ],
)
def test_a_mistyped_training_function_is_explained(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_hook(spec)


@pytest.mark.usefixtures("training_module")
def test_an_import_error_inside_the_users_module_is_theirs_to_see() -> None:
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_hook("my_broken:train")


def test_a_training_function_that_breaks_the_model_is_refused() -> None:
    def widen(student: nn.Module, teacher: nn.Module, data: object) -> None:
        student.fc = nn.Linear(6, 7)

    def explode(student: nn.Module, teacher: nn.Module, data: object) -> None:
        next(student.parameters()).data.fill_(math.inf)

    with pytest.raises(InputError, match=r"changed 'fc.bias' from shape \[3\] to shape \[7\]"):
        run_hook(widen, net(), net(), None)
    with pytest.raises(InputError, match=r"'conv.weight' holds values that are not finite"):
        run_hook(explode, net(), net(), None)
