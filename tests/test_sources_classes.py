"""Class folders and the model's outputs: by name, in order if there are as many, never by luck."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.batches import Data
from deploypruner.sources.classes import as_names, fit_classes, names_in, names_in_checkpoint, read_classes
from deploypruner.sources.data import load_data


def folder(root: Path, *files: str) -> Path:
    for number, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(root / name)
        else:
            (root / name).write_text("")
    return root


def classes_in(root: Path, *names: str) -> Data:
    return load_data(str(folder(root, *(f"{s}/{name}/0.png" for s in ("train", "val") for name in names))))


def labels(data: Data) -> list[int]:
    return next(data.val.epoch(batch_size=99))[1].tolist()


def test_as_many_folders_as_outputs_are_taken_in_order(tmp_path):
    data, remarks = fit_classes(classes_in(tmp_path, "cat", "dog", "fox"), 3)
    assert (labels(data), remarks) == ([0, 1, 2], ())


def test_fewer_or_more_folders_than_outputs_are_an_error_that_says_what_helps(tmp_path):
    data = classes_in(tmp_path, "dog", "fox")
    for outputs in (1, 10):
        with pytest.raises(
            InputError, match=rf"2 class folders \(dog, fox\), and the model {outputs} outputs"
        ) as found:
            fit_classes(data, outputs)
        assert "--classes FILE" in found.value.hint


def test_names_say_which_output_a_folder_is(tmp_path):
    data, remarks = fit_classes(classes_in(tmp_path, "Dog", "red_fox"), 4, asked=("cat", "red fox", "owl", "dog"))
    assert labels(data) == [3, 1]
    assert data.train.known_labels().tolist() == [3, 1]
    assert data.classes == ("cat", "red fox", "owl", "dog")
    assert remarks == ("2 class folders are outputs 3, 1 of the model's 4, by name",)


def test_the_models_own_names_count_even_where_there_are_as_many_folders(tmp_path):
    data, _ = fit_classes(classes_in(tmp_path, "cat", "dog"), 2, carried=("dog", "cat"))
    assert labels(data) == [1, 0]


def test_synonyms_and_synsets_are_names_and_what_two_classes_share_is_none(tmp_path):
    names = ("n02012849 crane, crane bird", "n03126707, crane", "n02119789 kit fox, Vulpes")
    data, _ = fit_classes(classes_in(tmp_path, "Vulpes", "n02012849"), 3, asked=names)
    assert labels(data) == [2, 0]
    with pytest.raises(InputError, match=r"1 of 1 class folders .* not in --classes"):
        fit_classes(classes_in(tmp_path / "b", "crane"), 3, asked=("a, crane", "b, crane", "c"))


def test_folders_of_other_names_than_the_models_are_an_error_or_are_said_to_be_in_order(tmp_path):
    data = classes_in(tmp_path, "cat", "dog")
    with pytest.raises(InputError, match=r"1 of 2 class folders of .* the model's own class names \(first: 'dog'\)"):
        fit_classes(data, 2, carried=("cat", "wolf"))
    same, remarks = fit_classes(data, 2, carried=("Katze", "Hund"))
    assert labels(same) == [0, 1]
    assert "taken in sorted order" in remarks[0]
    with pytest.raises(InputError, match="names 3 classes, and the model has 2 outputs"):
        fit_classes(data, 2, asked=("a", "b", "c"))
    with pytest.raises(InputError, match=r"'cat' and 'Cat' are both output 0|'Cat' and 'cat' are both output 0"):
        fit_classes(classes_in(tmp_path / "c", "Cat", "cat"), 2, asked=("cat", "dog"))


@pytest.mark.parametrize("text", ["cat\ndog\n", '["cat", "dog"]', '{"0": "cat", "1": "dog"}', '{"dog": 1, "cat": 0}'])
def test_a_file_of_names(tmp_path, text):
    (tmp_path / "names").write_text(text)
    assert read_classes(tmp_path / "names") == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        (" ", "names no class"),
        ('{"0": "cat", "2": "dog"}', "no list of class names"),
        ("[1", "no list"),
    ],
)
def test_a_file_without_names_is_an_error(tmp_path, text, said):
    (tmp_path / "names").write_text(text)
    with pytest.raises(InputError, match=said):
        read_classes(tmp_path / "names")
    with pytest.raises(InputError, match="no class names file"):
        read_classes(tmp_path / "nothing")


def test_names_that_a_model_or_a_checkpoint_carries(tmp_path):
    net = nn.Linear(2, 2)
    assert names_in(net) == ()
    net.class_to_idx = {"dog": 0, "cat": 1}
    assert names_in(net) == ("dog", "cat")
    net.class_to_idx = None
    net.config = type("Config", (), {"id2label": {0: "LABEL_0", 1: "LABEL_1"}})()  # transformers' placeholders
    assert names_in(net) == ()
    net.config.id2label = {0: "yes", 1: "no"}
    assert names_in(net) == ("yes", "no")
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "classes": ["a", "b"]}, tmp_path / "w.pt")
    assert names_in_checkpoint(tmp_path / "w.pt") == ("a", "b")
    assert as_names(json.loads('{"a": 0, "b": 0}')) is None


# ---------------------------------------------------------------------- layouts


LAYOUTS = [
    *[("train", "val"), ("Train", "Val"), ("Training", "Testing"), ("TRAIN", "TEST"), ("training", "validation")],
    *[("train", "valid"), ("train", "dev"), ("train2017", "val2017"), ("training_set", "test_set"), ("trn", "eval")],
    *[("data/train", "data/test"), ("a/b/Train", "a/b/dev")],
]


@pytest.mark.parametrize("layout", LAYOUTS, ids="+".join)
def test_splits_have_many_names(tmp_path, layout):
    data = load_data(str(folder(tmp_path, *(f"{split}/{name}/{split[-1]}.png" for split in layout for name in "cd"))))
    assert data.classes == ("c", "d")
    assert {batch.files[0].parent.parent.name for batch in (data.train, data.val)} == {
        Path(split).name for split in layout
    }
    assert Path(layout[1]).name == data.val.files[0].parent.parent.name


def test_the_split_that_is_preferred_is_validated_on_and_the_others_are_named(tmp_path):
    data = load_data(str(folder(tmp_path, *(f"{s}/c/0.png" for s in ("train", "test", "valid", "Val", "extra")))))
    assert data.val.files[0].parent.parent.name == "Val"
    assert [r.rpartition("/")[2] for r in data.remarks] == [
        "extra' is not used",
        "test' is not used",
        "valid' is not used",
    ]


def test_train_is_a_vehicle_among_other_classes(tmp_path):
    data = load_data(str(folder(tmp_path, *(f"{name}/{i}.png" for name in ("bus", "car", "train") for i in (0, 1)))))
    assert data.classes == ("bus", "car", "train")


def test_nothing_in_a_folder_is_left_out_without_a_remark(tmp_path):
    root = folder(
        tmp_path,
        *("train/c/0.png", "train/d/0.png", "val/c/0.png", "val/d/0.png", "train/c/notes.txt", "train/d/clip.gif"),
        *(
            "train/loose.png",
            "top.png",
            ".cache/x.png",
            "train/c/.DS_Store",
            "val/d/__pycache__/y.png",
            "classes.csv",
        ),
    )
    (root / "val" / "c" / "gone.png").symlink_to(root / "nowhere.png")
    said = "\n".join(load_data(str(root)).remarks)
    for name in (
        "top.png, train/loose.png",
        ".cache, train/c/.DS_Store, val/d/__pycache__",
        "classes.csv, train/d/clip",
    ):
        assert name in said, (name, said)
    assert "(1 .csv, 1 .gif, 1 .txt, 1 no regular files:" in said


def test_a_link_that_leads_back_is_followed_once(tmp_path):
    root = folder(tmp_path, "train/c/0.png", "val/c/0.png")
    (root / "train" / "c" / "again").symlink_to(root / "train" / "c")
    assert len(load_data(str(root)).train) == 1


# ---------------------------------------------------------------------- pixels


def pixels(path: Path, *, channels: int = 3, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    settings = DataSettings(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    root = path.parent
    data = load_data(str(root), settings)
    return next(data.val.epoch(batch_size=1))[0][0][0].numpy()


def saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> Path:
    for number in (0, 1):
        image.save(tmp_path / name.replace(".", f"{number}."), **options)
    return tmp_path / name


RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 65536, (5, 7)).astype(np.uint16)
COLOURS = RNG.integers(0, 256, (5, 7, 4)).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_the_same_shade(tmp_path, suffix, channels):
    got = pixels(saved(tmp_path, Image.fromarray(WIDE), f"a.{suffix}"), channels=channels)
    np.testing.assert_allclose(got, np.broadcast_to(WIDE / 65535, got.shape), atol=0.5 / 255 + 1e-6)


def test_floats_are_0_to_1_and_others_are_refused(tmp_path):
    values = RNG.random((5, 7)).astype(np.float32)
    got = pixels(saved(tmp_path, Image.fromarray(values), "a.tif"), channels=1)
    np.testing.assert_allclose(got[0], values, atol=0.5 / 255 + 1e-6)
    for number, wrong in enumerate((300 * values, -values, np.full((5, 7), np.nan, np.float32))):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(InputError, match=r"holds floats from .* 0 to 1 is what is known"):
            pixels(saved(tmp_path / str(number), Image.fromarray(wrong), "a.tif"))


def test_alpha_is_left_out_and_the_colours_stay(tmp_path):
    for name, image, want in (
        ("rgba", Image.fromarray(COLOURS), COLOURS[..., :3]),
        ("la", Image.fromarray(COLOURS[..., :2]), COLOURS[..., :1].repeat(3, axis=2)),
    ):
        (tmp_path / name).mkdir()
        got = pixels(saved(tmp_path / name, image, "a.png"))
        np.testing.assert_allclose(got.transpose(1, 2, 0), want / 255, atol=1e-6)


def test_palettes_become_their_colours(tmp_path):
    image = Image.fromarray(COLOURS[..., :3]).quantize(16)
    want = np.asarray(image.convert("RGB")) / 255
    got = pixels(saved(tmp_path, image, "a.png", transparency=bytes(range(16))))
    np.testing.assert_allclose(got.transpose(1, 2, 0), want, atol=1e-6)


def test_an_image_is_turned_as_its_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, Image.fromarray(COLOURS[..., :3]), "a.png", exif=exif)
    got = pixels(path, size=(7, 5)).transpose(1, 2, 0)
    np.testing.assert_allclose(got, np.rot90(COLOURS[..., :3], -1) / 255, atol=1e-6)
    assert load_data(str(tmp_path)).train.input_shapes == ((3, 7, 5),)


def test_a_stack_of_frames_is_refused(tmp_path):
    image = Image.fromarray(COLOURS[..., :3])
    with pytest.raises(InputError, match=r"a[01]\.tif' has 2 frames, and one is needed"):
        pixels(saved(tmp_path, image, "a.tif", save_all=True, append_images=[image]))
