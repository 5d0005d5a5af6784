"""`timm:NAME`, `torchvision:NAME` and `transformers:DIR_OR_NAME`, with `?pretrained=0&num_classes=10`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from torch import nn

from deploypruner.errors import InputError, nearest
from deploypruner.reading import check_present, read_json, status
from deploypruner.sources.foreign import foreign, require
from deploypruner.sources.found import FoundModel, ModelRequest
from deploypruner.sources.preprocessing import Preprocessing
from deploypruner.sources.torchvision_ops import import_torchvision

_OPTIONS = ("pretrained", "num_classes")
_SEQUENCE = 128
# Part of the module of a builder, or of the name of a class -> what the first output is.
_TORCHVISION_TASKS = {"segmentation": "segmentation", "detection": "detection", "optical_flow": "values"}
_TRANSFORMERS_TASKS = {
    "ImageClassification": "classification",
    "SequenceClassification": "classification",
    "AudioClassification": "classification",
    "SemanticSegmentation": "segmentation",
    "TokenClassification": "tokens",
    "CausalLM": "tokens",
    "MaskedLM": "tokens",
    "ObjectDetection": "detection",
}


@dataclass(frozen=True)
class _Order:
    """One zoo model as asked for: its name, whether pretrained weights are wanted, its class count."""

    zoo: str
    name: str
    pretrained: bool
    num_classes: int | None

    @property
    def failed(self) -> str:
        """Start of the message of an error while building."""
        return f"{'pretrained ' if self.pretrained else ''}{self.zoo} model '{self.name}' could not be made:"

    @property
    def hint(self) -> str:
        """What to do when pretrained weights cannot be had."""
        offline = f"without the hub: --weights FILE, or random weights with {self.zoo}:{self.name}?pretrained=0"
        return offline if self.pretrained else ""

    def arguments(self) -> dict[str, int]:
        """Keyword arguments for the zoo's own factory."""
        return {} if self.num_classes is None else {"num_classes": self.num_classes}


def load_timm(request: ModelRequest) -> FoundModel:
    """Build a timm model; input size, mean and std come from its pretrained configuration.

    Raises:
        InputError: timm is missing, the name is unknown, the download failed, or the weights do not fit.
    """
    order = _order(request)
    import_torchvision()
    timm = require("timm")
    if not order.name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        _check_known(order, order.name.partition(".")[0], timm.list_models())
    with foreign(order.failed, hint=order.hint):
        module = timm.create_model(order.name, pretrained=order.pretrained, **order.arguments())
    settings: Mapping[str, Any] = getattr(module, "pretrained_cfg", {})
    channels, height, width = settings.get("input_size", (3, 224, 224))
    return FoundModel(
        module,
        order.name,
        input_shape=(1, channels, height, width),
        preprocessing=Preprocessing(
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            resize=int(min(height, width) / settings.get("crop_pct", 0.875)),
            interpolation="bicubic" if settings.get("interpolation") == "bicubic" else "bilinear",
        ),
        task="classification" if getattr(module, "num_classes", 0) else "",
        classes=_timm_classes(timm, settings, getattr(module, "num_classes", 0)),
    )


def load_torchvision(request: ModelRequest) -> FoundModel:
    """Build a torchvision model; size, mean and std are those its default weights were evaluated with.

    Raises:
        InputError: torchvision is missing, the name is unknown, the download failed, or the weights do not fit.
    """
    order = _order(request)
    models = import_torchvision().models
    _check_known(order, order.name, models.list_models())
    # Without this, the builders of googlenet and inception_v3 warn about their future defaults.
    extra: dict[str, Any] = {}
    if order.name in ("googlenet", "inception_v3") and not order.pretrained:
        extra["init_weights"] = False
    with foreign(order.failed, hint=order.hint):
        builder = inspect.signature(models.get_model_builder(order.name))
        if not order.pretrained and "weights_backbone" in builder.parameters:
            extra["weights_backbone"] = None  # the builder would download it even without weights of its own
        weights = "DEFAULT" if order.pretrained else None
        module = models.get_model(order.name, weights=weights, **order.arguments(), **extra)
    size, preprocessing = _torchvision_evaluation(models, order.name)
    kind = models.get_model_builder(order.name).__module__
    task = next((task for part, task in _TORCHVISION_TASKS.items() if part in kind), "classification")
    return FoundModel(
        module,
        order.name,
        input_shape=(1, 3, size, size),
        preprocessing=preprocessing,
        task=task,
        classes=_torchvision_classes(models, order),
    )


def load_transformers(request: ModelRequest) -> FoundModel:
    """Build the class that a transformers configuration names, from a folder (no network) or the hub.

    Raises:
        InputError: transformers is missing, there is no such folder or model, it needs remote code, or
            the weights do not fit.
    """
    order = _order(request)
    with suppress(InputError):  # without torchvision text models work, and vision models say what they lack
        import_torchvision()
    transformers = require("transformers")
    folder = Path(order.name)
    found = status(folder, what="model")
    local = {"local_files_only": True} if found is not None and S_ISDIR(found.st_mode) else {}
    for file in folder.iterdir() if local else ():
        if not file.is_dir():
            check_present(file, what="model")  # the library would wait for a pipe for ever
    with foreign(order.failed, hint=order.hint):
        changes = {"num_labels": order.num_classes} if order.num_classes is not None else {}
        config = transformers.AutoConfig.from_pretrained(order.name, **local, **changes)
        config.return_dict = False
        if hasattr(config, "use_cache"):
            config.use_cache = False
        builder = getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)
        module = _build_transformers(builder, config, order, local)
    shape, integers_below = _transformers_input(module, config)
    return FoundModel(
        module,
        folder.name,
        input_shape=shape,
        integers_below=integers_below,
        preprocessing=_transformers_preprocessing(folder),
        task=_transformers_task(type(module).__name__, config),
    )


def _order(request: ModelRequest) -> _Order:
    zoo, _, rest = request.source.partition(":")
    name, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for key, value in options.items():
        if key not in _OPTIONS:
            raise InputError(f"'{request.source}' has an unknown option '{key}'", hint=nearest(key, _OPTIONS))
        if not value.isdigit() or (key == "pretrained" and value not in ("0", "1")):
            raise InputError(f"option '{key}={value}' of '{request.source}' must be a number", hint=f"{key}=0")
    pretrained = options.get("pretrained", "1") == "1" and request.weights is None
    classes = int(options["num_classes"]) if "num_classes" in options else None
    if pretrained and classes is not None:
        raise InputError(
            f"'{request.source}' would get a random last layer of {classes} outputs",
            hint="num_classes goes with --weights FILE or pretrained=0",
        )
    return _Order(zoo, name, pretrained, classes)


def _check_known(order: _Order, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = (
        f"did you mean {' or '.join(f'{order.zoo}:{other}' for other in close)}?"
        if close
        else "see its list_models()"
    )
    raise InputError(f"{order.zoo} has no model called '{name}'", hint=hint)


def _torchvision_evaluation(models: ModuleType, name: str) -> tuple[int, Preprocessing]:
    """Crop size and preprocessing of a model's default weights; 224 and ImageNet's where there are none."""
    best = getattr(models.get_model_weights(name), "DEFAULT", None)
    transform: Any = best.transforms() if best is not None else None
    if transform is None or not hasattr(transform, "crop_size"):
        return 224, Preprocessing()
    return transform.crop_size[0], Preprocessing(
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        resize=transform.resize_size[0],
        interpolation="bicubic" if transform.interpolation.value == "bicubic" else "bilinear",
    )


def _timm_classes(timm: ModuleType, settings: Mapping[str, Any], classes: int) -> tuple[str, ...]:
    """Names in the configuration of the weights, or ImageNet's synsets and names where those are what it has."""
    own = settings.get("label_names")
    if own and len(own) == classes:
        return tuple(own)
    if classes != 1000 or settings.get("num_classes") != 1000:
        return ()
    known = timm.data.ImageNetInfo()
    return tuple(f"{name}, {known.index_to_description(i)}" for i, name in enumerate(known.label_names()))


def _torchvision_classes(models: ModuleType, order: _Order) -> tuple[str, ...]:
    """Names that come with the default weights, where those are the model's."""
    best = getattr(models.get_model_weights(order.name), "DEFAULT", None)
    return tuple(best.meta.get("categories", ())) if best is not None and order.pretrained else ()


def _transformers_task(architecture: str, config: object) -> str:
    """What the name of the class says its first output is."""
    task = next((task for part, task in _TRANSFORMERS_TASKS.items() if part in architecture), "")
    number = getattr(config, "num_labels", 0)
    if task == "classification" and getattr(config, "problem_type", None) == "multi_label_classification":
        return "multilabel"
    return "regression" if task == "classification" and number == 1 else task


def _build_transformers(
    builder: Callable[..., nn.Module], config: object, order: _Order, local: dict[str, bool]
) -> nn.Module:
    if order.pretrained:
        return builder.from_pretrained(order.name, config=config, **local)  # type: ignore[attr-defined]
    # AutoModel is made by from_config, a concrete class by calling it.
    make: Callable[..., nn.Module] = getattr(builder, "from_config", builder)
    return make(config)


def _transformers_input(module: nn.Module, config: object) -> tuple[tuple[int, ...] | None, int]:
    """Shape of the main input and its vocabulary size (0 for images)."""
    main = getattr(module, "main_input_name", "")
    if main == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        size = config.image_size  # type: ignore[attr-defined]
        return (1, getattr(config, "num_channels", 3), size, size), 0
    if main == "input_ids" and hasattr(config, "vocab_size"):
        return (1, min(_SEQUENCE, getattr(config, "max_position_embeddings", _SEQUENCE))), config.vocab_size
    return None, 0


def _transformers_preprocessing(folder: Path) -> Preprocessing | None:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    with foreign(f"'{path}' cannot be read:"):
        settings = dict(read_json(path, what="preprocessor", hint="copy or download it again"))
        if "image_mean" not in settings or "image_std" not in settings:
            return None
        # resample is PIL's number; 3 is bicubic.
        return Preprocessing(
            mean=tuple(map(float, settings["image_mean"])),
            std=tuple(map(float, settings["image_std"])),
            interpolation="bicubic" if settings.get("resample") == 3 else "bilinear",
        )
