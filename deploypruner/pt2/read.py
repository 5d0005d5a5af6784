"""A .pt2 file -> torch's ExportedProgram, member by member, each of them checked before torch sees it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.pt2.archive import Archive
from deploypruner.pt2.refusal import AGAIN_HINT, Refusal, shown
from deploypruner.pt2.schema import checked
from deploypruner.pt2.tensors import read_example_inputs, read_pickled_tensors, read_tensors

_MODEL = "model"  # the program that torch.export.save and load mean


def read_program(path: Path) -> ExportedProgram:
    """Read a program on the CPU; nothing in the file is run, whoever wrote it.

    Args:
        path: Written by torch.export.save of this torch or an earlier one with the same major format.

    Raises:
        InputError: It is missing or damaged, holds anything but a program of tensors and torch's own operators, or
            is of a format that this torch does not read.
    """
    try:
        with path.open("rb") as file:
            program, tensors, constants, inputs = _parts(file)
        with quiet():
            return _deserialised(program, tensors, constants, inputs)
    except Refusal as refusal:
        hint = refusal.hint.replace("{path}", str(path))
        raise InputError(f"'{path}' is not read: {refusal.text()}", hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}", hint="check the path and its rights") from error


def _parts(file: IO[bytes]) -> tuple[schema.ExportedProgram, dict[str, Any], dict[str, Any], Any]:
    archive = Archive(file)
    if archive.earlier:
        state, constants = "serialized_state_dict.pt", "serialized_constants.pt"
        return (
            _program(archive, "serialized_exported_program.json"),
            read_pickled_tensors(archive, state),
            read_pickled_tensors(archive, constants),
            read_example_inputs(archive, "serialized_example_inputs.pt"),
        )
    if archive.has("byteorder") and archive.read("byteorder") != b"little":
        raise Refusal("was written by a big-endian machine", AGAIN_HINT).at("byteorder")
    return (
        _program(archive, f"models/{_MODEL}.json"),
        read_tensors(archive, "data/weights", _MODEL),
        read_tensors(archive, "data/constants", _MODEL),
        read_example_inputs(archive, f"data/sample_inputs/{_MODEL}.pt"),
    )


def _program(archive: Archive, name: str) -> schema.ExportedProgram:
    document = archive.read_json(name)
    try:
        _check_version(document)
        program: schema.ExportedProgram = checked(schema.ExportedProgram, document)
    except Refusal as refusal:
        raise refusal.at(name) from None
    except RecursionError:
        raise Refusal("is nested too deeply", AGAIN_HINT).at(name) from None
    return program


def _check_version(document: Any) -> None:
    version = document.get("schema_version") if isinstance(document, dict) else None
    major = version.get("major") if isinstance(version, dict) else None
    if major != schema.SCHEMA_VERSION[0]:
        written = document.get("torch_version", "an unknown torch") if isinstance(document, dict) else "nobody knows"
        raise Refusal(
            f"has format {shown(major)} (written by {shown(written)}); this torch reads format "
            f"{schema.SCHEMA_VERSION[0]}",
            "export the model again with the torch that is installed here",
        )


def _deserialised(program: schema.ExportedProgram, tensors: Any, constants: Any, inputs: Any) -> ExportedProgram:
    try:
        return ExportedProgramDeserializer().deserialize(program, tensors, constants, inputs)
    except Exception as error:  # a graph that contradicts itself fails anywhere in torch
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
        raise Refusal(f"torch cannot build its graph: {said}", AGAIN_HINT) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's own log lines and warnings about a program to itself; the error says what matters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
