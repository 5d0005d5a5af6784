"""Weight files as they are published load into the model, and nothing but tensors is read from them."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.sources.state_dict import load_weights

State = dict[str, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))


def weights(shift: float = 1.0) -> State:
    """All different from `net`'s own, and from those of another shift."""
    return {name: value + shift for name, value in net().state_dict().items()}


def pre(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def loaded(held: object, tmp_path: Path, model: nn.Module | None = None, asked: str = "") -> tuple[State, str]:
    """State after loading a file that holds `held`, and what was said."""
    torch.save(held, tmp_path / "w.pth")
    model = model or net()
    said = load_weights(model, Path(f"{tmp_path / 'w.pth'}{asked}"))
    return dict(model.state_dict()), " ".join(said)


def same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[n], other[n]) for n in state)


class Momentum(nn.Module):
    """A training wrapper: the model, a slow copy of it and a loss with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.model = net()
        self.loss = nn.Linear(4, 4)


_FORMS: dict[str, Callable[[State], Any]] = {
    "compiled inside DDP": lambda s: pre("module._orig_mod.", s),
    "DDP inside compiled": lambda s: pre("_orig_mod.module.", s),
    "FSDP": lambda s: pre("_fsdp_wrapped_module._orig_mod.", s),
    "compiled in Lightning": lambda s: {"state_dict": pre("model._orig_mod.", s), "epoch": 1},
    "Lightning in DDP": lambda s: {"state_dict": pre("module.net.model.", s), "hyper_parameters": {"lr": 0.1}},
    "BasicSR": lambda s: {"params": s},
    "pytorch-cifar": lambda s: {"net": pre("module.", s), "acc": 90.1, "epoch": 3},
    "a key nobody uses": lambda s: {"checkpoint": {"weights_of_the_net": s}},
    "args": lambda s: {
        "model": s,
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "when": dt.datetime(2024, 5, 6),
    },
    "numpy": lambda s: {"state_dict": s, "best": np.float64(0.7), "curve": np.arange(3), "o": SimpleNamespace(a=1)},
    "defaultdict": lambda s: {"state_dict": collections.OrderedDict(s), "log": collections.defaultdict(list, a=[1])},
    "optimizer": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}},
}


@pytest.mark.parametrize("form", _FORMS)
def test_a_published_file_loads_bit_by_bit(form: str, tmp_path: Path) -> None:
    assert same(loaded(_FORMS[form](weights()), tmp_path)[0], weights())


def test_a_part_of_the_layers_may_be_compiled(tmp_path: Path) -> None:
    state = {name.replace("2.", "2._orig_mod."): value for name, value in weights().items()}
    assert same(loaded(state, tmp_path)[0], weights())


def test_a_wrapped_model_takes_the_file_of_the_plain_one(tmp_path: Path) -> None:
    for name in ("_orig_mod", "module", "backbone"):
        wrapped = nn.ModuleDict({name: net()})
        assert same(loaded(weights(), tmp_path, wrapped)[0], pre(f"{name}.", weights()))


@pytest.mark.parametrize(
    ("plain", "ema"),
    [("params", "params_ema"), ("state_dict", "state_dict_ema"), ("model", "ema"), ("net", "model_ema")],
)
def test_the_average_is_preferred_and_the_other_can_be_asked_for(plain: str, ema: str, tmp_path: Path) -> None:
    held = {plain: weights(1), ema: weights(2)}
    state, said = loaded(held, tmp_path)
    assert same(state, weights(2))
    assert f"those of '{ema}' were taken; '{plain}' would fit too" in said
    assert same(loaded(held, tmp_path, asked=f"#{plain}")[0], weights(1))


def test_an_average_inside_a_lightning_state_is_found(tmp_path: Path) -> None:
    held = {
        "state_dict": pre("model.", weights(1)) | pre("ema_model.module.", weights(2)) | {"loss.w": torch.ones(1)}
    }
    state, said = loaded(held, tmp_path)
    assert same(state, weights(2))
    assert "lie outside 'state_dict.ema_model" in said
    assert same(loaded(held, tmp_path, asked="#model")[0], weights(1))


def test_what_lies_beside_the_model_is_counted(tmp_path: Path) -> None:
    torch.manual_seed(1)
    training = Momentum()
    state, said = loaded({"state_dict": training.state_dict()}, tmp_path)
    assert same(state, dict(training.model.state_dict()))
    assert said.startswith("2 tensors of ")


def test_of_equal_copies_any_will_do(tmp_path: Path) -> None:
    assert same(loaded({"a": weights(), "b": weights()}, tmp_path)[0], weights())


def test_two_models_in_one_file_are_never_guessed(tmp_path: Path) -> None:
    held = {"state_dict": pre("encoder_q.", weights(1)) | pre("encoder_k.", weights(2))}
    with pytest.raises(InputError, match=r"2 sets of weights[\s\S]*#state_dict\.encoder_k'"):
        loaded(held, tmp_path)
    assert same(loaded(held, tmp_path, asked="#state_dict.encoder_k")[0], weights(2))
    assert same(loaded(held, tmp_path, asked="#encoder_q")[0], weights(1))
    with pytest.raises(InputError, match=r"under 'encoder'[\s\S]*did you mean 'state_dict\.encoder_[qk]'"):
        loaded(held, tmp_path, asked="#encoder")


def test_hints_say_what_is_the_matter(tmp_path: Path) -> None:
    wide = weights() | {"2.weight": torch.zeros(9, 8, 1, 1), "2.bias": torch.zeros(9)}
    with pytest.raises(InputError, match=r"file \[9, 8, 1, 1\], model \[4, 8, 1, 1\][\s\S]*number of classes"):
        loaded({"net": pre("module.", wide)}, tmp_path)
    with pytest.raises(InputError, match=r"8 missing[\s\S]*hint: no name agrees"):
        loaded({"features.conv.w": torch.zeros(3)}, tmp_path)
    with pytest.raises(InputError, match=r"closest under 'net': 1 missing \(first '0\.weight'\)"):
        loaded({"net": {n: v for n, v in weights().items() if n != "0.weight"}}, tmp_path)
    with pytest.raises(InputError, match=r"file int8, model float32"):
        loaded({n: v.to(torch.int8) for n, v in weights().items()}, tmp_path)


class Opaque:
    """Not on the list of what may stand beside weights."""


def test_a_class_that_is_not_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pickled Python objects beside its tensors \(\S*Opaque\)"):
        loaded({"model": weights(), "callback": Opaque()}, tmp_path)


def test_a_key_of_a_file_that_has_none_is_to_be_left_out(tmp_path):
    with pytest.raises(InputError, match=r"hold nothing that fits the model under 'ema'[\s\S]*hint: leave #ema out$"):
        loaded(weights(), tmp_path, asked="#ema")
