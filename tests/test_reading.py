"""Files that somebody else wrote: regular ones only, of bounded size and depth, and none is waited for."""

from __future__ import annotations

import json
import math
import os
import socket
import zipfile
from pathlib import Path

import pytest

from deploypruner.errors import InputError, RecipeError
from deploypruner.ranges import check_number, check_shape
from deploypruner.reading import check_present, open_archive, parse_json, read_json, read_toml, walk


def refused(tmp_path: Path, text: str | bytes) -> str:
    """What is said about a TOML file with this text."""
    path = tmp_path / "r.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_toml(path, what="recipe", hint="look at an example")
    return caught.value.message


def test_a_pipe_a_device_a_socket_a_folder_and_links_in_a_circle_are_named_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    server.close()
    for path, said in (
        (tmp_path / "pipe", "is a named pipe, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
        (tmp_path / "socket", "is a socket, not a file"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "circle", "cannot look at data .*: too many levels of symbolic links"),
        (tmp_path / ("a" * 300), "cannot look at data .*: file name too long"),
        (Path("a\0b"), "is no file name"),
        (tmp_path / "nothing", "no data file"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            check_present(path, what="data")
        assert caught.value.hint


def test_a_file_larger_than_the_memory_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(InputError, match=r"has 4\.4e\+03 GB, more than this machine's memory"):
        check_present(tmp_path / "holes", what="model")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 65 + "1" + "]" * 65])
def test_json_that_is_nested_too_deeply_is_named(text):
    with pytest.raises(InputError, match="nested"):
        parse_json(text, name="report 'r.json'", hint="rebuild")
    assert parse_json("[" * 63 + "1" + "]" * 63, name="report", hint="") is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9" * 5000, "more than 4300 digits"),
        ("9" * 50, "a number of 50 digits"),
        ("NaN", "NaN is no number of JSON"),
        ("[1e999]", "not finite"),
        ('{"a": 1,\n}', "at line 2"),
        ("", "at line 1"),
    ],
)
def test_json_that_no_program_could_calculate_with_is_named(text, said):
    with pytest.raises(InputError, match=said):
        parse_json(text, name="report 'r.json'", hint="rebuild")


def test_toml_that_is_deep_long_or_binary_is_named(tmp_path):
    assert "nested too deeply" in refused(tmp_path, "a = " + "[" * 5000)
    assert "nested more than 64 levels deep" in refused(tmp_path, ".".join("a" * 100) + " = 1")
    assert "more than 4300 digits" in refused(tmp_path, "a = " + "9" * 5000)
    assert "a number of 6021 digits" in refused(tmp_path, "a = 0x" + "f" * 5000)
    assert "not UTF-8" in refused(tmp_path, b"a = '\xff'")
    assert "is not TOML" in refused(tmp_path, "a = = 1")
    (tmp_path / "r.toml").write_text("a = inf\nb = [1, 2.5]\n")
    assert read_toml(tmp_path / "r.toml", what="recipe", hint="") == {"a": math.inf, "b": [1, 2.5]}


def test_what_json_may_hold_comes_back_as_it_was_written(tmp_path):
    document = {"a": [1, -2.5, True, None], "ü": {"deep": [[[2**63]]]}}
    (tmp_path / "d.json").write_text(json.dumps(document))
    assert read_json(tmp_path / "d.json", what="report", hint="") == document


def test_an_archive_that_would_unpack_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("deploypruner.reading._SMALL_BYTES", 1 << 21)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"{number}.npy", bytes(1_000_000))
    said = r"would unpack to 0\.003 GB, \d{3,4} times its size"
    with pytest.raises(InputError, match=said), open_archive(path, what="data"):
        pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small.npy", bytes(1_000_000))
    with open_archive(path, what="data") as archive:
        assert archive.read("small.npy") == bytes(1_000_000)


def test_damage_in_a_member_is_damage_of_the_archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("member", b"0123456789" * 10)
    held = bytearray(path.read_bytes())
    held[60] ^= 1
    path.write_bytes(held)
    said = "is truncated or corrupt: Bad CRC-32"
    with pytest.raises(InputError, match=said), open_archive(path, what="data") as archive:
        archive.read("member")


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("")
    for name in ("up", "up again"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert sorted(file for _, _, files in walk(tmp_path) for file in files) == ["file"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, 5, 10**400])
def test_a_number_that_is_not_finite_or_out_of_range_is_refused_in_the_same_words(value):
    with pytest.raises(RecipeError, match=r"--step must be at least 0 and at most 4, got "):
        check_number("--step", value, least=0, most=4, hint="2")
    check_number("--step", 3, least=0, most=4, hint="2")
    check_number("--step", None, least=0, most=4, hint="2")


def test_a_bound_is_part_of_its_range_only_where_it_is_meant_to_be():
    for value in (0, 1):
        with pytest.raises(RecipeError, match="share must be more than 0 and less than 1, got"):
            check_number("share", value, above=0, below=1, hint="0.5")
    check_number("share", 1e-300, above=0, below=1, hint="0.5")
    with pytest.raises(RecipeError, match="count must be at least 1, got 2147483648"):
        check_number("count", 2**31, least=1, hint="5")


@pytest.mark.parametrize("shape", [(1, 3, 99_999_999, 99_999_999), (2**28 + 1,), (1, 0), (-1, 3), ()])
def test_a_shape_that_no_machine_could_hold_is_refused(shape):
    with pytest.raises(RecipeError, match="--input-shape"):
        check_shape("--input-shape", shape, hint="1,3,224,224")
    check_shape("--input-shape", (1, 3, 8192, 8192), hint="1,3,224,224")
