"""Weights, constants and example inputs of an archive: plain bytes, or what torch.load(weights_only=True) reads."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the exception that torch.load raises, nothing is unpickled
from typing import Any

import torch
from torch import Tensor
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from deploypruner.errors import said_by
from deploypruner.pt2.archive import Archive
from deploypruner.pt2.refusal import AGAIN_HINT, FOREIGN_HINT, Refusal, shown
from deploypruner.pt2.schema import attribute, checked
from deploypruner.reading import ARCHIVE_DAMAGE

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer, int, float, bool, str, type(None), complex)
_DAMAGE = (RuntimeError, OSError, LookupError, ValueError, EOFError, TypeError, AttributeError, AssertionError)


def read_tensors(archive: Archive, folder: str, model: str) -> dict[str, Tensor]:
    """Name -> tensor of "data/weights" or "data/constants"; tensors that share memory do so afterwards.

    Raises:
        Refusal: Something is missing or damaged, no plain tensor, or needs unpickling.
    """
    whole = f"{folder}/{model}.pt"  # written by torch 2.8
    if archive.has(whole):
        return read_pickled_tensors(archive, whole)
    name = f"{folder}/{model}_{Path(folder).name}_config.json"
    document = archive.read_json(name)
    try:
        config: schema.PayloadConfig = checked(schema.PayloadConfig, document)
    except Refusal as refusal:
        raise refusal.at(name) from None
    flat: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    for key, meta in config.config.items():
        try:
            found[key] = _strided(archive, folder, meta, flat)
        except Refusal as refusal:
            raise refusal.at(shown(key)).at(name) from None
    return found


def _strided(archive: Archive, folder: str, meta: schema.PayloadMeta, flat: dict[str, Tensor]) -> Tensor:
    about = meta.tensor_meta
    if about is None:
        raise Refusal("is not described", AGAIN_HINT)
    sizes, strides = _numbers(about.sizes), _numbers(about.strides)
    (offset,) = _numbers([about.storage_offset])
    if meta.path_name not in flat:
        flat[meta.path_name] = _bytes(archive.read(f"{folder}/{meta.path_name}"), about, sizes)
    try:
        tensor = torch.as_strided(flat[meta.path_name], sizes, strides, offset)
        return torch.nn.Parameter(tensor, requires_grad=about.requires_grad) if meta.is_param else tensor
    except RuntimeError as error:
        raise Refusal(f"does not fit its bytes: {said_by(error)}", AGAIN_HINT) from None


def _bytes(content: bytes, about: schema.TensorMeta, sizes: list[int]) -> Tensor:
    dtype = _SERIALIZE_TO_TORCH_DTYPE.get(about.dtype)
    if dtype is None:
        raise Refusal("has no type", AGAIN_HINT)
    if not content:
        if 0 not in sizes:
            raise Refusal(f"has no bytes for the sizes {sizes}", "it was exported as a fake tensor; export real ones")
        return torch.zeros(sizes, dtype=dtype)
    if len(content) % dtype.itemsize:
        raise Refusal(f"has {len(content)} bytes, no multiple of {dtype.itemsize}", AGAIN_HINT)
    return torch.frombuffer(bytearray(content), dtype=dtype)


def _numbers(values: list[schema.SymInt]) -> list[int]:
    if any(value.type != "as_int" or value.as_int < 0 for value in values):
        raise Refusal("has a size that is no number", AGAIN_HINT)
    return [int(value.as_int) for value in values]


def read_pickled_tensors(archive: Archive, name: str) -> dict[str, Tensor]:
    """A dict of tensors that torch.save wrote.

    Raises:
        Refusal: It holds anything else.
    """
    held = read_plain(archive, name)
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise Refusal("holds more than tensors").at(name)
    return {attribute(key): value for key, value in held.items()}


def read_example_inputs(archive: Archive, name: str) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Positional and keyword example inputs; None where none were saved.

    Raises:
        Refusal: They hold anything but tensors, numbers and texts in tuples, lists and dicts.
    """
    if not archive.has(name) or not (held := read_plain(archive, name)):
        return None
    if not isinstance(held, tuple) or len(held) != 2 or not isinstance(held[0], tuple) or type(held[1]) is not dict:
        raise Refusal("are not positional and keyword inputs", AGAIN_HINT).at(name)
    return held


def read_plain(archive: Archive, name: str) -> Any:
    """What torch.save wrote, where torch.load(weights_only=True) reads it; {} for an empty member.

    Raises:
        Refusal: It needs unpickling, or is damaged, or holds other types.
    """
    content = archive.read(name)
    if not content:
        return {}
    try:
        _check_packing(content)
        held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        _check_plain(held, 0)
    except Refusal as refusal:
        raise refusal.at(name) from None
    except UnpicklingError:
        raise Refusal("holds pickled Python objects, and unpickling can run any code").at(name) from None
    except _DAMAGE as error:
        raise Refusal(f"is damaged: {said_by(error)[:200]}", AGAIN_HINT).at(name) from None
    return held


def _check_packing(content: bytes) -> None:
    """It is an archive inside the archive, with the same bounds."""
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return
        inner = zipfile.ZipFile(io.BytesIO(content))
    except ARCHIVE_DAMAGE as error:
        raise Refusal(f"is damaged: {error}", AGAIN_HINT) from None
    with inner:
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in inner.infolist())
        if packed or sum(member.file_size for member in inner.infolist()) > len(content):
            raise Refusal("is compressed, which torch does not do: it could unfold to any size", AGAIN_HINT)


def _check_plain(value: Any, depth: int) -> None:
    if depth > 50:
        raise Refusal("is nested too deeply", AGAIN_HINT)
    if type(value) in (tuple, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            if type(name) not in (str, int):
                raise Refusal(f"has {shown(name)} as a key", FOREIGN_HINT)
            _check_plain(item, depth + 1)
    elif type(value) not in _PLAIN:
        raise Refusal(f"holds a {type(value).__name__}", FOREIGN_HINT)
