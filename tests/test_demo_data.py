from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deploypruner.cli.demo import DemoNet, demo_data, digits_data, train_demo_model
from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.arrays import from_arrays
from deploypruner.train.validate import top1_percent

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors; more threads wait for each other
    yield
    torch.set_num_threads(threads)


def test_the_digits_are_whole_split_once_and_never_differently() -> None:
    x, y, x_val, y_val = digits_data()
    assert (x.shape, y.shape) == ((1437, 1, 16, 16), (1437,))
    assert (x_val.shape, y_val.shape) == ((360, 1, 16, 16), (360,))
    assert (x.dtype, y.dtype) == (np.float32, np.int64)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    assert set(y) == set(y_val) == set(range(10))
    assert np.array_equal(digits_data()[0], x)


def test_the_digits_are_those_of_scikit_learn_with_every_pixel_doubled() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    x, y, x_val, y_val = digits_data()
    ours = np.concatenate([x, x_val])[:, 0]
    assert np.array_equal(ours[:, ::2, ::2], ours[:, 1::2, 1::2])
    back = {(picture.tobytes(), int(label)) for picture, label in zip(images, labels, strict=True)}
    small = ((ours[:, ::2, ::2] + 1) * 8).astype(np.float64).reshape(-1, 64)
    assert {(p.tobytes(), int(k)) for p, k in zip(small, np.concatenate([y, y_val]), strict=True)} == back


def test_digits_are_neither_flipped_nor_shifted() -> None:
    train = demo_data().train
    plain, changed = (
        next(train.epoch(batch_size=4, seed=1, shuffle=True, augment=augment)) for augment in (False, True)
    )
    assert torch.equal(plain[0][0], changed[0][0])


def test_without_scikit_learn_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"scikit-learn, which is not installed[\s\S]*deploypruner\[demo\]"):
        digits_data()


def test_the_network_halves_the_picture_twice_and_scores_ten_classes() -> None:
    model = DemoNet(widths=(4, 8, 16)).eval()
    x = torch.zeros(2, 1, 16, 16)
    assert model(x).shape == (2, 10)
    assert model.stage3(model.stage2(model.stage1(model.bn(model.stem(x))))).shape == (2, 16, 4, 4)


def test_training_is_repeatable_and_learns() -> None:
    x, y, x_val, y_val = digits_data()
    some = from_arrays({"x": x[:400], "y": y[:400], "x_val": x_val, "y_val": y_val}, DataSettings(), name="some")
    first, again = (train_demo_model(seed=3, data=some, epochs=6, widths=(8, 16, 32)) for _ in range(2))
    assert not first.training
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert top1_percent(first, some.val) > 60.0  # chance is 10 %
