"""timm, torchvision and transformers models by name."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from deploypruner.errors import InputError
from deploypruner.recipe.data import IMAGENET_MEAN
from deploypruner.sources.model import LoadedModel, load_model
from deploypruner.sources.torchvision_ops import import_torchvision

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
needs_zoo = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("timm", "torchvision")),
    reason="timm and torchvision are not installed: pip install 'deploypruner[zoo]'",
)


@needs_zoo
@pytest.mark.parametrize("source", ["torchvision:resnet18", "timm:mobilenetv3_small_100"])
def test_a_random_model_runs_at_the_size_it_was_made_for(source: str) -> None:
    first = load_model(f"{source}?pretrained=0&num_classes=10")
    assert first.example_inputs[0].shape == (1, 3, 224, 224)
    assert first.module(*first.example_inputs).shape == (1, 10)
    assert first.preprocessing is not None
    assert (first.preprocessing.mean, first.preprocessing.resize) == (IMAGENET_MEAN, 256)


@needs_zoo
def test_the_asked_shape_wins_over_the_zoo_and_the_zoo_over_the_data() -> None:
    source = "torchvision:squeezenet1_1?pretrained=0"
    from_zoo, asked = (
        load_model(source, data_shapes={"": (3, 64, 64)}),
        load_model(source, input_shapes=((2, 3, 64, 64),)),
    )
    assert from_zoo.example_inputs[0].shape == (1, 3, 224, 224)
    assert asked.example_inputs[0].shape == (2, 3, 64, 64)
    assert from_zoo.sha256 == asked.sha256


@needs_zoo
def test_weights_are_loaded_into_a_zoo_model(tmp_path: Path) -> None:
    models = import_torchvision().models
    torch.manual_seed(5)
    trained = models.get_model("squeezenet1_1", weights=None, num_classes=4)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    loaded = load_model(
        "torchvision:squeezenet1_1?num_classes=4", weights=tmp_path / "w.pth", input_shapes=((1, 3, 64, 64),)
    )
    torch.testing.assert_close(loaded.module(*loaded.example_inputs), trained.eval()(*loaded.example_inputs))


@needs_zoo
@pytest.mark.parametrize("zoo", ["timm", "torchvision"])
def test_an_unknown_name_offers_the_nearest(zoo: str) -> None:
    with pytest.raises(InputError, match=rf"{zoo} has no model called 'resnet8'[\s\S]*did you mean {zoo}:resnet18"):
        load_model(f"{zoo}:resnet8")


@needs_zoo
@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("pretraind=0", r"unknown option 'pretraind'[\s\S]*did you mean 'pretrained'\?"),
        ("pretrained=no", "'pretrained=no' .* must be a number"),
        ("num_classes=10", "random last layer of 10 outputs"),
    ],
)
def test_options_are_checked(query: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(f"torchvision:resnet18?{query}")


@needs_zoo
def test_a_failed_download_names_the_cause_and_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(import_torchvision().models, "get_model", offline)
    with pytest.raises(
        InputError, match=r"URLError: .*service not known[\s\S]*--weights FILE.*resnet18\?pretrained=0"
    ):
        load_model("torchvision:resnet18")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"transformers is not installed\n\nhint: pip install transformers"):
        load_model("transformers:some/model")


def _saved_bert(folder: Path) -> LoadedModel:
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 50}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | sizes | {"max_position_embeddings": 16}))
    return load_model(f"transformers:{folder}?pretrained=0")


@needs_zoo
def test_a_vision_transformer_is_built_whatever_torch_its_torchvision_was_made_for(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = {"model_type": "vit", "architectures": ["ViTModel"], "image_size": 16, "patch_size": 8, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = f"load_model('transformers:{tmp_path}?pretrained=0')"
    program = f"from deploypruner.sources.model import load_model; print({made}.name)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == tmp_path.name, said.stderr


def test_a_transformers_folder_gives_the_class_its_configuration_names(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    loaded = _saved_bert(tmp_path / "tiny")
    (tokens,) = loaded.example_inputs
    assert (tokens.dtype, tuple(tokens.shape), loaded.name) == (torch.int64, (1, 16), "tiny")
    assert loaded.module(tokens)[0].shape == (1, 2)
    loaded.module.save_pretrained(tmp_path / "saved")
    assert load_model(f"transformers:{tmp_path / 'saved'}").sha256 == loaded.sha256
    with pytest.raises(InputError, match=r"pretrained transformers model .* could not be made: OSError"):
        load_model(f"transformers:{tmp_path / 'tiny'}")
