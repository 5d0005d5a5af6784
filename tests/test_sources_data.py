"""Arrays, .npz files and loaders as data; labels and shapes checked against the model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from deploypruner.errors import InputError, RecipeError
from deploypruner.recipe.data import IMAGENET_MEAN, IMAGENET_STD, DataSettings
from deploypruner.sources.data import (
    Batch,
    Batches,
    Data,
    as_data,
    check_labels,
    check_shapes,
    content_fingerprint,
    load_data,
    peek_shapes,
    settings_for,
)
from deploypruner.sources.loaders import from_loader
from deploypruner.sources.matched import matched
from deploypruner.sources.preprocessing import Preprocessing

_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def numbered(count: int = 20) -> tuple[Tensor, Tensor]:
    """Sample i is [i, i, i] with label i."""
    return torch.arange(count).float()[:, None].expand(count, 3).clone(), torch.arange(count)


def images(count: int = 12, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def same(left: Iterator[Batch], right: Iterator[Batch]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(torch.equal(a[0][0], b[0][0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def saved(**arrays: np.ndarray) -> str:
    np.savez("data.npz", **arrays)
    return "data.npz"


def loaders() -> dict[str, Data]:
    x, y = numbered()
    return {
        "arrays": as_data((x, y)),
        "uint8 images": as_data((images(20), y)),
        "loader": as_data(DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True)),
        "own generator": as_data(
            DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, generator=torch.Generator())
        ),
        "list": as_data([(x[:10], y[:10]), (x[10:], y[10:])]),
    }


@pytest.mark.parametrize("kind", loaders())
def test_every_epoch_holds_every_sample_once_and_is_repeatable(kind: str) -> None:
    train = loaders()[kind].train
    options = {"batch_size": 7, "shuffle": True, "augment": True}
    seen = torch.cat([target for _, target in train.epoch(seed=1, **options)])
    assert len(seen) == len(train) == len(seen.unique())
    assert same(train.epoch(seed=1, **options), train.epoch(seed=1, **options))
    if kind != "list":
        assert not same(train.epoch(seed=1, **options), train.epoch(seed=2, **options))


def test_a_loader_neither_sees_nor_moves_the_global_random_state() -> None:
    train = loaders()["loader"].train
    expected = [target.tolist() for _, target in train.epoch(batch_size=6, seed=1)]
    torch.manual_seed(9)
    state = torch.get_rng_state()
    got = []
    for _, target in train.epoch(batch_size=6, seed=1):
        assert torch.equal(torch.get_rng_state(), state)
        got.append(target.tolist())
        torch.rand(3)
        state = torch.get_rng_state()
    assert got == expected


def test_looking_at_a_loader_starts_it_once_and_leaves_the_random_state_alone() -> None:
    x, y = numbered()
    begun = []

    class Loader:
        def __iter__(self):
            begun.append(torch.rand(1))  # as a shuffling loader draws its seed
            return iter([(x[:10], y[:10]), (x[10:], y[10:])])

    state = torch.get_rng_state()
    from_loader(Loader(), "train")
    assert len(begun) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_split_is_seeded_disjoint_and_remarked() -> None:
    x, y = numbered()
    data = as_data((x, y), DataSettings(val_fraction=0.25, seed=4))
    train, val = data.train.known_labels(), data.val.known_labels()
    assert (len(train), len(val)) == (15, 5)
    assert sorted(train.tolist() + val.tolist()) == y.tolist()
    assert torch.equal(val, as_data((x, y), DataSettings(val_fraction=0.25, seed=4)).val.known_labels())
    assert data.remarks == ("'arrays' has no validation split: 5 of its 20 samples are set aside (seed 4)",)


def test_the_limit_takes_a_seeded_part_of_each_split() -> None:
    x, y = numbered()
    data = as_data((x, y), DataSettings(limit=3))
    assert (len(data.train), len(data.val)) == (3, 2)
    assert "limited to 3 of 18 samples (seed 0)" in data.remarks
    limited = as_data(DataLoader(TensorDataset(x, y), batch_size=6), DataSettings(limit=8)).train
    assert [len(target) for _, target in limited.epoch(batch_size=6)] == [6, 2]
    assert len(limited) == 8


def test_floats_are_used_as_they_are_and_labels_stay_with_them() -> None:
    x, y = numbered()
    data = load_data(
        saved(x=x.double().numpy(), y=y.numpy().astype(np.uint8), x_val=x[:2].numpy(), y_val=y[:2].numpy())
    )
    for (values,), target in data.train.epoch(batch_size=8, seed=1, shuffle=True, augment=True):
        assert values.dtype == torch.float32
        assert target.dtype == torch.int64
        assert torch.equal(values[:, 0], target.float())
    assert (data.name, data.labelled, len(data.val), data.remarks) == ("data", True, 2, ())


def test_an_npz_may_hold_one_array_per_input_and_samples_stay_together() -> None:
    x, y = numbered()
    image, facts = x.numpy()[:, :2] * 10, x.numpy()[:, :1]
    data = load_data(saved(facts=facts, labels=y.numpy(), image=image))
    assert peek_shapes("data.npz") == {"facts": (1,), "image": (2,)}
    data, _ = matched(data, (torch.zeros(1, 2), torch.zeros(1, 1)), ("image", "facts"))
    assert (len(data.train), len(data.val)) == (18, 2)
    for (first, second), target in data.train.epoch(batch_size=4, seed=3, shuffle=True):
        assert torch.equal(first[:, 0], 10 * target.float())
        assert torch.equal(second[:, 0], target.float())
    halves = {f"{name}_val": array[:5] for name, array in {"facts": facts, "image": image}.items()}
    data = load_data(saved(facts=facts, image=image, **halves))
    assert (len(data.train), len(data.val), data.labelled, data.remarks) == (20, 5, False, ())
    lone = load_data(saved(image=image, y=y.numpy()))
    assert next(lone.train.epoch(batch_size=3))[0][0].shape == (3, 2)


def test_an_x_beside_the_arrays_of_the_inputs_is_left_out_in_words() -> None:
    x, y = numbered()
    saved(x=x.numpy(), y=y.numpy(), image=2 * x.numpy(), facts=x.numpy())
    assert len(next(load_data("data.npz").train.epoch(batch_size=2))[0]) == 1
    names = ("image", "facts")
    data, remarks = matched(load_data("data.npz", inputs=names), (torch.zeros(1, 3),) * 2, names)
    (first, second), target = next(data.train.epoch(batch_size=2))
    assert torch.equal(first, 2 * second)
    assert torch.equal(second[:, 0], target.float())
    assert remarks == ("of the data, x are left out: the model takes image, facts alone",)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_uint8_images_of_either_layout_are_normalised(layout: str) -> None:
    pixels = images(4)
    given = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    data = load_data(saved(x=given, x_val=given[:2]))
    ((values,), target) = next(data.train.epoch(batch_size=4))
    assert target is None
    by_hand = (pixels[1, 2, 3, 0] / 255 - IMAGENET_MEAN[0]) / IMAGENET_STD[0]
    assert values.shape == (4, 3, 8, 8)
    assert values[1, 0, 2, 3].item() == pytest.approx(by_hand, abs=1e-5)


def test_gray_images_get_a_channel_and_their_own_mean() -> None:
    pixels = np.full((4, 5, 5), 255, dtype=np.uint8)
    ((values,), _) = next(as_data(pixels).train.epoch(batch_size=9))
    assert values.shape == (3, 1, 5, 5)
    assert values.unique().tolist() == [1.0]
    with pytest.raises(InputError, match="mean has 3 and std 3 values, but images have 1 channels"):
        next(as_data(pixels, DataSettings(mean=(0.0,) * 3, std=(1.0,) * 3)).train.epoch(batch_size=9))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros(3)}, r"'data' has no input; it holds y"),
        (
            {"image": np.zeros((3, 2)), "facts": np.zeros((4, 1))},
            r"differ in .* samples: 'image' \[3, 2\], 'facts' \[4",
        ),
        ({"image": np.zeros((3, 2)), "facts": np.array([0, np.nan, 0])}, "'facts' of 'data' holds NaN"),
        ({"a": np.zeros(3), "b": np.zeros(3), "a_val": np.zeros(2)}, "of some arrays alone: 'b_val' is not there"),
        ({"a": np.zeros(3), "a_val": np.zeros(2), "y": np.zeros(3)}, "of some arrays alone: 'y_val' is not there"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, "3 samples in 'x' but 4 labels in 'y'"),
        ({"x": np.array([[0.0], [np.nan], [np.inf]])}, r"NaN or Inf in 2 of 3 samples \(first: 1\)"),
        ({"x": np.zeros((0, 2))}, r"'x' of 'data' holds no samples \(shape \[0, 2\]\)"),
        ({"x": np.array([{}, {}])}, "cannot be read without running code"),
        ({"x": np.array(["a", "b"])}, "'x' of 'data' is <U1, not numbers"),
        ({"x": np.zeros((1, 2))}, "has 1 sample, too few"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3, int), "x_val": np.zeros((3, 2))}, "'y_val' is not"),
        ({"x": np.zeros((3, 2)), "y_val": np.zeros(3, int)}, "has 'y_val' but no 'x_val'"),
    ],
)
def test_what_is_wrong_with_an_npz_is_said(arrays: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_data(saved(**arrays))


def test_files_that_are_no_data_are_named() -> None:
    whole = Path(saved(x=np.zeros((50, 2)))).read_bytes()
    for end in range(1, len(whole) - 1, len(whole) // 20):
        Path("cut.npz").write_bytes(whole[:end])
        with pytest.raises(InputError, match=r"'cut\.npz'"):
            load_data("cut.npz")
    Path("empty.npz").touch()
    Path("table.csv").touch()
    for source, said in {
        "empty.npz": r"data file 'empty\.npz' is empty \(0 bytes\)",
        "table.csv": r"'table\.csv' is no kind of data",
        "gone": r"no data folder or file 'gone'[\s\S]*an \.npz with x and y",
    }.items():
        with pytest.raises(InputError, match=said):
            load_data(source)


@pytest.mark.parametrize("targets", [np.linspace(0, 1, 6), np.eye(6, dtype=int)], ids=["regression", "one-hot"])
def test_targets_that_are_no_class_indices_judge_and_do_not_train(targets: np.ndarray) -> None:
    for data in (
        as_data((np.zeros((6, 2, 2)), targets)),
        as_data([(torch.zeros(6, 2, 2), torch.from_numpy(targets))]),
    ):
        assert not data.labelled
        assert data.val.has_targets
        assert next(data.train.epoch(batch_size=9))[1] is None
        got = torch.cat([target for _, target in data.train.with_targets(batch_size=9)])
        assert set(map(str, got.tolist())) <= set(map(str, targets.tolist()))


def test_targets_of_detections_are_lists_with_an_entry_per_image() -> None:
    boxes = [{"boxes": torch.ones(n, 4), "labels": torch.ones(n, dtype=torch.int64)} for n in (1, 2, 3)]
    data = as_data([(torch.zeros(3, 3, 8, 8), boxes)])
    assert not data.labelled
    ((_, target),) = data.val.with_targets(batch_size=9)
    assert [len(entry["boxes"]) for entry in target] == [1, 2, 3]


def test_targets_of_two_heads_are_a_tuple() -> None:
    one, two = torch.tensor([0, 1, 2]), torch.tensor([[0.5], [1.5], [2.5]])
    data = as_data([(torch.zeros(3, 4), [one, two])])
    assert not data.labelled
    ((_, (first, second)),) = data.val.with_targets(batch_size=9)
    assert torch.equal(first, one)
    assert torch.equal(second, two)


def test_a_factory_may_return_whatever_the_python_api_takes() -> None:
    name = f"user_data_{next(_NUMBERS)}"
    Path(f"{name}.py").write_text("import torch\ndef make(): return torch.zeros(6, 4), torch.arange(6)\n")
    data = load_data(f"{name}:make")
    assert (data.name, data.labelled, data.train.input_shapes) == ("make", True, ((4,),))
    assert peek_shapes(f"{name}:make") == {"": (4,)}
    Path(f"{name}s.py").write_text(
        "import torch\ndef make(): return [((torch.zeros(6, 4), torch.zeros(6, 3)), torch.arange(6))]\n"
    )
    assert peek_shapes(f"{name}s:make") == {"0": (4,), "1": (3,)}


def test_batches_may_be_tensors_pairs_nested_or_dicts() -> None:
    x, y = numbered(4)
    for item, inputs, labelled in (
        (x, 1, False),
        ((x,), 1, False),
        ([x, y], 1, True),
        ((x, x, y), 2, True),
        (((x, x), y), 2, True),
        ({"image": x, "label": y}, 1, True),
        ((x.double(), y[:, None]), 1, True),
    ):
        data = as_data(([item], [item]))
        values, target = next(data.val.epoch(batch_size=4))
        assert len(values) == inputs
        assert torch.equal(values[0], x)
        assert (target is not None) == data.labelled == labelled


def test_two_loaders_are_training_and_validation_and_one_is_both() -> None:
    x, y = numbered()
    two = as_data((DataLoader(TensorDataset(x, y), 5), DataLoader(TensorDataset(x[:4], y[:4]), 5, drop_last=False)))
    assert (len(two.train), len(two.val), two.remarks) == (20, 4, ())
    one = as_data(DataLoader(TensorDataset(x, y), 6, drop_last=True))
    assert one.train is one.val
    assert len(one.train) == 18
    assert "accuracy is measured on training samples" in one.remarks[0]
    assert as_data(one) is one


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x, y: ((x, y) for _ in range(3)), "is a generator, which can be read only once"),
        (lambda x, y: [], "yields no batch"),
        (lambda x, y: [("a", y)], "holds str, not tensors"),
        (lambda x, y: [(x, y[:2])], r"parts of different lengths: \[2, 4\]"),
        (lambda x, y: 7, "data of type int cannot be read"),
    ],
)
def test_what_is_no_loader_is_said(make: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        as_data(make(*numbered(4)))


def test_an_iterable_of_unknown_length_has_no_len() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            return iter([torch.zeros(2, 3)])

    train = as_data(Endless()).train
    assert train.samples is None
    with pytest.raises(TypeError, match="not known"):
        len(train)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 7], r"label 7 of sample 2 of train.*0\.\.4, the data has 0\.\.7"),
        ([0, -1, 2], "label -1 of sample 1 of"),
    ],
)
def test_labels_outside_the_outputs_are_named(labels: list[int], said: str) -> None:
    x = np.zeros((3, 2))
    data = load_data(saved(x=x, y=np.array(labels), x_val=x, y_val=np.zeros(3, int)))
    with pytest.raises(InputError, match=said):
        check_labels(data, 5)
    check_labels(as_data(x), 5)


def test_a_loaders_labels_are_checked_too() -> None:
    x, y = numbered()
    with pytest.raises(InputError, match="label 19 of sample 19 of train is outside the model's 10 outputs"):
        check_labels(as_data(DataLoader(TensorDataset(x, y), 5)), 10)


def test_samples_of_another_shape_than_the_model_takes_are_refused() -> None:
    data = as_data(images())
    check_shapes(data, (torch.zeros(4, 3, 8, 8),))
    with pytest.raises(InputError, match=r"has shape \[3, 8, 8\], .* \[3, 9, 9\]\n\nhint: --input-shape 1,3,8,8"):
        check_shapes(data, (torch.zeros(1, 3, 9, 9),))
    with pytest.raises(InputError, match=r"\[3, 8, 8\], the model's example input \[3, 8, 8\], \[4\]"):
        check_shapes(data, (torch.zeros(1, 3, 8, 8), torch.zeros(1, 4)))


def test_the_models_preprocessing_fills_what_the_user_left_open() -> None:
    model = Preprocessing(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), resize=40, interpolation="bicubic")
    settings = settings_for((torch.zeros(1, 3, 32, 24),), model, DataSettings(mean=(0.5, 0.5, 0.5)))
    assert (settings.size, settings.mean, settings.std) == ((32, 24), (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    assert (settings.resize, settings.interpolation) == (40, "bicubic")
    assert settings_for((torch.zeros(1, 7),), model) == DataSettings()
    assert settings_for((torch.zeros(1, 1, 28, 28),), None).channels == 1


@pytest.mark.parametrize(
    "wrong", [{"val_fraction": 1.0}, {"limit": 0}, {"channels": 4}, {"size": (0, 8)}, {"std": (0.0,)}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"must|channels"):
        DataSettings(**wrong)


def test_one_kind_of_batches_can_be_given_as_it_is() -> None:
    train = loaders()["arrays"].train
    assert isinstance(train, Batches)
    assert as_data((train, train)).train is train


def test_the_fingerprint_of_data_follows_its_content(tmp_path):
    x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
    np.savez(tmp_path / "a.npz", x=x)
    first = content_fingerprint(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=x + 1)
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"one")
    before = content_fingerprint(str(tmp_path / "images"))
    assert content_fingerprint(str(tmp_path / "images")) == before
    (folder / "1.png").write_bytes(b"two")
    os.utime(folder / "1.png", ns=(1, 1))
    found = [first, content_fingerprint(tmp_path / "a.npz"), before, content_fingerprint(str(tmp_path / "images"))]
    found += [content_fingerprint(given) for given in (x, x + 1, (x, y), (x, y[::-1].copy()), torch.ones(2))]
    assert len(set(found)) == len(found)
    assert content_fingerprint("package.module:factory") == ""
    assert content_fingerprint((torch.from_numpy(x), torch.from_numpy(y))) == content_fingerprint((x, y))


def test_data_behind_a_link_belongs_to_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "0.png").write_bytes(b"1")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    before = content_fingerprint(tmp_path / "data")
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"22")
    assert content_fingerprint(tmp_path / "data") != before
