"""Which output of a model a class of the data is: by names where they are known, never by luck."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deploypruner.errors import InputError, nearest
from deploypruner.reading import parse_json, read_text
from deploypruner.sources.adapted import Relabelled
from deploypruner.sources.batches import Data
from deploypruner.sources.state_dict import read_without_code

Names = tuple[str, ...]

_HINT = "--classes FILE with the name of every output of the model, one per line, tells which output a class is"
# Attributes of a module and keys of a checkpoint that hold class names.
_KEYS = ("classes", "class_names", "class_to_idx", "idx_to_class", "id2label", "label_names", "names")
_NAMED = 6
_NUMBER = re.compile(r"[0-9]{1,9}")


def read_classes(path: Path) -> Names:
    """Read the class names of a model in the order of its outputs.

    Args:
        path: One name a line; or JSON: a list, {"0": "cat"} or {"cat": 0}. Several names of one class are separated
            by commas ("n01440764, tench"); a synset in front of a name may do without one.

    Raises:
        InputError: There is no such file, it is no text, or it names nothing.
    """
    text = read_text(path, what="class names", hint="one name per line", missing="one name per line")
    text = text.removeprefix("\ufeff")
    names: Names | None = None
    if text.lstrip().startswith(("[", "{")):
        with suppress(InputError):  # said below, with both forms
            names = as_names(parse_json(text, name=f"class names '{path}'", hint=_HINT))
        if names is None:
            raise InputError(
                f"'{path}' is no list of class names",
                hint='one name per line, or JSON: ["cat", "dog"] or {"0": "cat"}',
            )
    names = names or tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise InputError(f"'{path}' names no class", hint="one name per line, in the order of the model's outputs")
    return names


def as_names(found: object) -> Names | None:
    """Class names out of a list, {index: name} or {name: index}; None where it is none of these, or has gaps."""
    if isinstance(found, list | tuple):
        return tuple(found) if found and all(isinstance(name, str) for name in found) else None
    if not isinstance(found, Mapping) or not found:
        return None
    pairs: dict[int, str] = {}
    for key, value in found.items():
        name, index = (key, value) if isinstance(value, int) else (value, key)
        number = int(index) if isinstance(index, int) or (isinstance(index, str) and _NUMBER.fullmatch(index)) else -1
        if not isinstance(name, str) or number in pairs:
            return None
        pairs[number] = name
    return tuple(pairs[i] for i in range(len(pairs))) if set(pairs) == set(range(len(pairs))) else None


def names_in(holder: object) -> Names:
    """Class names that a module, its configuration or a checkpoint carries; none where it carries none."""
    for place in (holder, getattr(holder, "config", None)):
        for key in _KEYS:
            value: Any = place.get(key) if isinstance(place, Mapping) else getattr(place, key, None)
            names = as_names(value)
            if names and not all(re.fullmatch(r"LABEL_\d+", name) for name in names):
                return names
    return ()


def names_in_checkpoint(path: Path | None) -> Names:
    """Class names beside the weights in a file of torch.save; none where there are none, or code would run."""
    if path is None or path.suffix == ".safetensors":
        return ()
    with suppress(InputError):
        return names_in(read_without_code(path))
    return ()


def fit_classes(data: Data, outputs: int, *, asked: Names = (), carried: Names = ()) -> tuple[Data, tuple[str, ...]]:
    """Bring the labels of class folders to the model's outputs.

    By name, where the user or the model names its outputs; else the folders' sorted names are the outputs in order,
    if there are as many.

    Args:
        data: Labelled; only where `data.classes` is known is there anything to do.
        outputs: Number of the model's classes.
        asked: Names that the user gave.
        carried: Names that the model carries.

    Returns:
        The data with the model's class numbers, and remarks.

    Raises:
        InputError: A folder that is no class of the model, or whose class cannot be told.
    """
    found = data.classes
    if asked and len(asked) != outputs:
        raise InputError(
            f"--classes names {len(asked)} classes, and the model has {outputs} outputs",
            hint="give one name per output, in their order",
        )
    if found is None:
        return (replace(data, classes=asked) if asked else data), ()
    names = asked or (carried if len(carried) == outputs else ())
    index = _by_name(names)
    unknown = [name for name in found if _key(name) not in index]
    if names and not unknown:
        return _renumbered(data, [index[_key(name)] for name in found], names)
    if asked or (names and len(unknown) < len(found)):
        source = "--classes" if asked else "the model's own class names"
        raise InputError(
            f"{len(unknown)} of {len(found)} class folders of '{data.name}' are not in {source} (first: "
            f"'{unknown[0]}')",
            hint=nearest(unknown[0], [name.partition(",")[0] for name in names]) if asked else _HINT,
        )
    if len(found) != outputs:
        listed = ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
        raise InputError(
            f"'{data.name}' has {len(found)} class folders ({listed}), and the model {outputs} outputs: which output "
            f"a folder is cannot be told",
            hint=_HINT,
        )
    if names:
        remark = (
            f"the class folders of '{data.name}' have other names than the model's classes: taken in sorted order"
        )
        return data, (remark,)
    return data, ()


def _renumbered(data: Data, numbers: Sequence[int], names: Names) -> tuple[Data, tuple[str, ...]]:
    assert data.classes is not None, "only class folders are renumbered"
    if len(set(numbers)) < len(numbers):
        twice = next(i for i, number in enumerate(numbers) if number in numbers[:i])
        first = numbers.index(numbers[twice])
        raise InputError(
            f"class folders '{data.classes[first]}' and '{data.classes[twice]}' are both output {numbers[twice]} of "
            "the model",
            hint="join the folders, or give each class a name of its own in --classes",
        )
    if list(numbers) == list(range(len(names))):
        return replace(data, classes=names), ()
    mapping = torch.tensor(numbers)
    count = f"{len(numbers)} class folders are outputs {_few(numbers)} of the model's {len(names)}, by name"
    mapped = replace(data, train=Relabelled(data.train, mapping), val=Relabelled(data.val, mapping), classes=names)
    return mapped, (count,)


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_NAMED])) + (", ..." if len(numbers) > _NAMED else "")


def _by_name(names: Names) -> dict[str, int]:
    """Every name that is one class's alone -> its output; whole lines before the parts of them."""
    index: dict[str, int] = {}
    for parts in (lambda name: [name], _parts):
        taken: dict[str, set[int]] = {}
        for number, name in enumerate(names):
            for part in parts(name):
                taken.setdefault(_key(part), set()).add(number)
        for key, numbers in taken.items():
            if len(numbers) == 1:
                index.setdefault(key, next(iter(numbers)))
    return index


def _parts(name: str) -> list[str]:
    """ "n01440764 tench, Tinca tinca" -> the synset and both names."""
    parts = [part.strip() for part in name.split(",")]
    synset = re.match(r"(n\d{8})\s+(.+)", parts[0])
    return [*parts, *(synset.groups() if synset else ())]


def _key(name: str) -> str:
    """Names are the same in any case, with blanks, dashes or underscores."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
