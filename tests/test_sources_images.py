"""Image folders: layouts, decoding, crops, augmentation and what is said about broken ones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deploypruner.errors import InputError
from deploypruner.recipe.data import IMAGENET_MEAN, IMAGENET_STD, DataSettings
from deploypruner.sources import image_folder
from deploypruner.sources.data import Data, check_labels, load_data, peek_shapes
from deploypruner.sources.pixels import augmented, decode, flipped, normalise, random_boxes


def draw(path: Path, *, size: tuple[int, int] = (8, 8), seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train and val of two classes; sample k of a split was drawn with seed k."""
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for index in range(count):
                draw(tmp_path / "pets" / split / name / f"{index}.png", seed=label * count + index)
    return tmp_path / "pets"


def lazily(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: DataSettings) -> Data:
    monkeypatch.setattr(image_folder, "_MEMORY_BYTES", 0)
    data = load_data(str(folder), settings)
    monkeypatch.undo()
    return data


def test_classes_are_sorted_and_samples_keep_their_label_and_pixels(folder: Path) -> None:
    data = load_data(str(folder))
    assert (data.classes, data.labelled, data.name, data.remarks) == (("cat", "dog"), True, "pets", ())
    ((values,), target) = next(data.train.epoch(batch_size=99))
    assert target.tolist() == [0] * 5 + [1] * 5
    drawn = np.asarray(Image.open(folder / "train" / "dog" / "2.png"))
    expected = (drawn / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(values[7].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("size", [8, 72], ids=["shift and flip", "part and flip"])
@pytest.mark.parametrize("lazy", [True, False])
def test_augmented_epochs_are_repeatable_and_keep_the_shape(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, size: int, lazy: bool
) -> None:
    settings = DataSettings(size=(size, size))
    train = (lazily(folder, monkeypatch, settings) if lazy else load_data(str(folder), settings)).train
    assert isinstance(train, image_folder.FileBatches) == lazy

    def epoch(seed: int, *, augment: bool = True) -> torch.Tensor:
        batches = train.epoch(batch_size=3, seed=seed, augment=augment)
        return torch.cat([values for (values,), _ in batches])

    assert epoch(1).shape == (10, 3, size, size)
    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert torch.equal(epoch(1, augment=False), epoch(2, augment=False))


def test_decoding_now_or_later_gives_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataSettings(size=(8, 8))
    later = lazily(folder, monkeypatch, settings).train.epoch(batch_size=4, seed=3, shuffle=True, augment=True)
    now = load_data(str(folder), settings).train.epoch(batch_size=4, seed=3, shuffle=True, augment=True)
    for (left, left_target), (right, right_target) in zip(now, later, strict=True):
        assert torch.equal(left[0], right[0])
        assert torch.equal(left_target, right_target)


def test_augmentation_can_be_switched_off_for_good(folder: Path) -> None:
    train = load_data(str(folder), DataSettings(augment=False)).train
    plain, asked = (next(train.epoch(batch_size=9, seed=1, augment=flag))[0][0] for flag in (False, True))
    assert torch.equal(plain, asked)


def test_a_folder_without_splits_is_split(folder: Path) -> None:
    data = load_data(str(folder / "train"), DataSettings(val_fraction=0.3))
    assert (len(data.train), len(data.val), data.classes) == (7, 3, ("cat", "dog"))
    assert "3 of its 10 samples are set aside" in data.remarks[0]


def test_images_without_classes_are_unlabelled_and_extensions_have_any_case(tmp_path: Path) -> None:
    for index, name in enumerate(("a.JPG", "b.png", "c.webp", "d.bmp", "e.jpeg")):
        draw(tmp_path / name, seed=index)
    (tmp_path / "notes.txt").write_text("no image")
    data = load_data(str(tmp_path))
    assert (data.labelled, data.classes, len(data.train) + len(data.val)) == (False, None, 5)
    assert next(data.train.epoch(batch_size=2))[1] is None


def test_test_serves_as_validation_and_val_goes_first(folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    assert len(load_data(str(folder)).val) == 4
    draw(folder / "val" / "cat" / "0.png")
    draw(folder / "val" / "dog" / "0.png")
    data = load_data(str(folder))
    assert len(data.val) == 2
    assert data.remarks == (f"'{folder / 'test'}' is not used",)


def test_splits_with_different_classes_are_refused(folder: Path) -> None:
    draw(folder / "val" / "emu" / "0.png")
    with pytest.raises(InputError, match=r"1 classes of 'val' are not in 'train' \(first: 'emu'\)"):
        load_data(str(folder))


def test_empty_folders_are_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no images in '.*empty': looked for \.jpg, \.jpeg, \.png"):
        load_data(str(tmp_path / "empty"))
    (folder / "train" / "cow").mkdir()
    with pytest.raises(InputError, match=r"class folder '.*cow' has no images; leaving it out would shift"):
        load_data(str(folder))


@pytest.mark.parametrize("size", [None, (8, 8)])
def test_an_unreadable_image_is_named(folder: Path, size: tuple[int, int] | None) -> None:
    broken = folder / "train" / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=rf"image '{broken}' cannot be read"):
        load_data(str(folder), DataSettings(size=size))


def test_an_unreadable_image_is_named_when_decoded_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = folder / "train" / "dog" / "3.png"
    broken.write_bytes(b"not an image")
    train = lazily(folder, monkeypatch, DataSettings(size=(8, 8))).train
    with pytest.raises(InputError, match=rf"image '{broken}' cannot be read"):
        list(train.epoch(batch_size=4))


def test_images_of_different_sizes_need_a_size(folder: Path) -> None:
    assert peek_shapes(str(folder)) == {"": (3, 8, 8)}
    draw(folder / "train" / "cat" / "0.png", size=(9, 7))
    assert peek_shapes(str(folder)) == {}
    with pytest.raises(InputError, match=r"differ in size: '.*0\.png' is 7x9, '.*1\.png' is 8x8"):
        load_data(str(folder))
    assert load_data(str(folder), DataSettings(size=(16, 12))).train.input_shapes == ((3, 16, 12),)


def test_gray_images_for_a_model_of_one_channel(folder: Path) -> None:
    data = load_data(str(folder), DataSettings(channels=1))
    ((values,), _) = next(data.train.epoch(batch_size=1))
    gray = np.asarray(Image.open(folder / "train" / "cat" / "0.png").convert("L"))
    np.testing.assert_allclose(values[0, 0].numpy(), gray / 127.5 - 1, atol=1e-5)


def test_a_class_beyond_the_models_outputs_names_the_file(folder: Path) -> None:
    with pytest.raises(InputError, match=r"label 1 of '.*dog/0\.png' is outside the model's 1 outputs"):
        check_labels(load_data(str(folder)), 1)
    check_labels(load_data(str(folder)), 1000)


def test_the_limit_is_remarked(folder: Path) -> None:
    data = load_data(str(folder), DataSettings(limit=4))
    assert (len(data.train), len(data.val)) == (4, 4)
    assert data.remarks == ("limited to 4 of 10 images (seed 0)",)


@pytest.mark.parametrize("source", [(300, 400), (400, 300), (224, 500), (130, 131)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_evaluation_crop_is_torchvisions(tmp_path: Path, source: tuple[int, int]) -> None:
    if find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install 'deploypruner[zoo]'")
    from deploypruner.sources.torchvision_ops import import_torchvision

    path = draw(tmp_path / "image.png", size=source)
    import_torchvision()
    from torchvision import transforms

    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.open(path))
    ours = decode(path, DataSettings(size=(224, 224)))
    assert np.array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


def test_small_targets_are_resized_without_a_crop(tmp_path: Path) -> None:
    path = draw(tmp_path / "image.png", size=(40, 60))
    ours = decode(path, DataSettings(size=(32, 32)))
    theirs = Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(ours, np.asarray(theirs).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = draw(tmp_path / "image.png", mode=mode)
    assert decode(path, DataSettings(size=(8, 8))).shape == (3, 8, 8)


def test_normalisation_by_hand() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert normalise(pixels, (0.5,), (0.25,)).flatten().tolist() == pytest.approx([-2.0, -1.2, 2.0])


def test_a_shifted_image_is_a_window_of_the_padded_one() -> None:
    image = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6).expand(40, 1, 6, 6)
    padded = torch.nn.functional.pad(image[0, 0], (4, 4, 4, 4))
    windows = [padded[r : r + 6, c : c + 6] for r in range(9) for c in range(9)]
    allowed = {tuple(w.flatten().tolist()) for w in [*windows, *(w.flip(1) for w in windows)]}
    made = augmented(image, torch.Generator().manual_seed(0))
    got = {tuple(one.flatten().tolist()) for one in made}
    assert made.shape == image.shape
    assert got <= allowed
    assert len(got) > 20


def test_about_half_of_the_images_are_mirrored() -> None:
    image = torch.tensor([1.0, 2.0]).expand(1000, 1, 1, 2)
    made = flipped(image, torch.Generator().manual_seed(0))
    assert 400 < (made[:, 0, 0, 0] == 2).sum() < 600
    assert (made.sum(-1) == 3).all()


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_random_parts_lie_inside_the_image(aspect: float) -> None:
    boxes = random_boxes(2000, aspect, torch.Generator().manual_seed(0))
    left, top, width, height = boxes.unbind(1)
    assert (boxes >= 0).all()
    assert max((left + width).max(), (top + height).max()) <= 1 + 1e-6
    assert (width * height).min() > 0.2


def test_the_whole_image_as_random_part_is_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    monkeypatch.setattr("deploypruner.sources.pixels.random_boxes", lambda *_: whole)
    image = torch.randint(0, 256, (1, 3, 72, 72), dtype=torch.uint8)
    made = augmented(image, torch.Generator().manual_seed(0))
    assert any(torch.allclose(made, one.float(), atol=1e-2) for one in (image, image.flip(-1)))
