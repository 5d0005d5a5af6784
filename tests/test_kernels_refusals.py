"""Wrong sizes, types and files given to the kernels from Python: an error with both numbers, never a crash."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploypruner.errors import KernelError
from deploypruner.sparse import library
from deploypruner.sparse.arrays import aligned, c4_shape
from deploypruner.sparse.bindings import Conv, ConvShape, create, from_c4, pool_c4, scale_c4, to_c4
from tests.builds import run_cli

pytestmark = pytest.mark.skipif(not library.is_built(), reason="the package was built without its sparse kernels")

SHAPE = ConvShape(8, 4, 3, 5)
WEIGHTS, SCALE, BIAS = np.ones((4, 8, 1, 1), np.int8), np.ones(4, np.float32), np.zeros(4, np.int32)


def conv(shape: ConvShape = SHAPE) -> Conv:
    return Conv(shape, WEIGHTS, SCALE, BIAS)


def c4(batch: int = 1, channels: int = 8, pixels: int = 15) -> np.ndarray:
    found = aligned(c4_shape(batch, channels, pixels))
    found[:] = 0
    return found


def shifted() -> np.ndarray:
    """An activation that begins one byte beyond an aligned address."""
    raw = aligned((2 * 16 * 4 + 64,))
    return raw[1 : 1 + 2 * 16 * 4].reshape(1, 2, 16, 4)


def closed() -> Conv:
    found = conv()
    found.close()
    return found


MASK = np.full(4, 255, np.uint8)


def made(mask: np.ndarray = MASK, scale: np.ndarray = SCALE) -> object:
    return create(SHAPE, mask, WEIGHTS.ravel(), scale=scale, bias=BIAS)


RESIDUAL = ConvShape(8, 4, 3, 5, residual_zero_point=0, residual_scale=1.0)
SCALED = {"zero_points": (0, 0), "ratio": 1.0}
HOSTILE: list[tuple[str, Callable[[], object]]] = [
    (
        "the weights must be int8 [4, 8, 1, 1], and is int8 [4, 4, 1, 1]",
        lambda: Conv(SHAPE, WEIGHTS[:, :4], SCALE, BIAS),
    ),
    ("the weights must be int8", lambda: Conv(SHAPE, WEIGHTS.astype(np.float32), SCALE, BIAS)),
    ("the weights must be int8", lambda: Conv(SHAPE, WEIGHTS[:3], SCALE, BIAS)),
    ("the weights must be int8", lambda: Conv(SHAPE, WEIGHTS.reshape(4, 8), SCALE, BIAS)),
    ("the scale must be float32 [4], and is float32 [3]", lambda: Conv(SHAPE, WEIGHTS, SCALE[:3], BIAS)),
    ("the bias must be int32 [4], and is int32 [2]", lambda: Conv(SHAPE, WEIGHTS, SCALE, BIAS[:2])),
    ("groups must be in 1 .. 2147483647, and is 0", lambda: conv(ConvShape(8, 4, 3, 5, groups=0))),
    ("height must be in 1 .. 2147483647, and is 4294967299", lambda: conv(ConvShape(8, 4, 2**32 + 3, 5))),
    ("width must be in 1", lambda: conv(ConvShape(8, 4, 3, -5))),
    ("the scale must be float32 [4]", lambda: made(scale=SCALE[:1])),
    ("the mask must be uint8", lambda: made(np.full(4, 255))),
    ("the mask has 3 bytes", lambda: made(np.full(3, 255, np.uint8))),
    ("x must be uint8 [1, 2, 16, 4], and is uint8 [1, 1, 16, 4]", lambda: conv()(c4(channels=4))),
    ("x must be uint8", lambda: conv()(c4(pixels=17))),
    ("x must be uint8", lambda: conv()(c4().astype(np.int8))),
    ("x must be uint8", lambda: conv()(c4()[0])),
    ("batch must be in 1", lambda: conv()(c4(batch=0))),
    ("x must be contiguous and begin at a multiple of 64 bytes", lambda: conv()(shifted())),
    ("x must be contiguous", lambda: conv()(aligned((1, 2, 32, 4))[:, :, ::2])),
    ("the residual must be uint8 [1, 1, 16, 4]", lambda: conv(RESIDUAL)(c4(), c4())),
    ("this convolution needs a residual", lambda: conv(RESIDUAL)(c4())),
    ("this convolution adds no residual", lambda: conv()(c4(), c4(channels=4))),
    ("out must be uint8 [1, 1, 16, 4]", lambda: conv()(c4(), out=c4())),
    ("out shares bytes", lambda: (lambda x: conv()(x, out=x[:, :1]))(c4())),
    ("the convolution is closed", lambda: closed()(c4())),
    ("the image must be uint8", lambda: to_c4(np.zeros((1, 3, 5, 8)))),
    ("the image must be uint8 [3, 5, 8, 0], and is uint8 [3, 5, 8]", lambda: to_c4(np.zeros((3, 5, 8), np.uint8))),
    ("channels must be in 1", lambda: to_c4(np.zeros((1, 3, 5, 0), np.uint8))),
    ("the activation must be uint8 [1, 3, 16, 4]", lambda: from_c4(c4(), (3, 5, 12))),
    ("the activation must be uint8", lambda: from_c4(c4(), (300, 500, 8))),
    ("channels must be in 1", lambda: from_c4(c4(), (3, 5, -8))),
    ("the activation must be uint8", lambda: pool_c4(c4(), (150, 8), zero_point=0, factor=1.0)),
    ("the activation must be uint8", lambda: pool_c4(c4(), (15, 80), zero_point=0, factor=1.0)),
    ("the activation must be contiguous", lambda: pool_c4(shifted(), (15, 8), zero_point=0, factor=1.0)),
    (
        "the numbers to scale by must be float32 [1, 8], and is float32 [8]",
        lambda: scale_c4(c4(), np.ones(8), 15, **SCALED),
    ),
    ("the numbers to scale by must be float32 [2, 8]", lambda: scale_c4(c4(2), np.ones((1, 8)), 15, **SCALED)),
    ("the activation must be uint8", lambda: scale_c4(c4(), np.ones((1, 80)), 15, **SCALED)),
    ("pixels must be in 1", lambda: scale_c4(c4(), np.ones((1, 8)), 0, **SCALED)),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_a_hostile_call_is_refused_with_what_is_wrong(number: int) -> None:
    said, call = HOSTILE[number]
    with pytest.raises(KernelError, match=re.escape(said)):
        call()


def test_what_fits_is_computed_all_the_same() -> None:
    x = to_c4(np.arange(120, dtype=np.uint8).reshape(1, 3, 5, 8))
    with conv() as one:
        assert from_c4(one(x, out=c4(channels=4)), (3, 5, 4))[0, 0, 0, 0] == sum(range(8))


@pytest.mark.parametrize("name", [library.KERNELS, library.EXTENSION])
@pytest.mark.parametrize("kept", [0, 63, 64, 4096, -64, -1])
def test_a_library_that_is_cut_off_is_refused_and_ends_no_process(tmp_path: Path, name: str, kept: int) -> None:
    """In a process of its own: what reads beyond the end of a mapped file dies of SIGBUS."""
    (tmp_path / library.EXTENSION).write_bytes(library.path_of(library.EXTENSION).read_bytes())
    label = library.path_of(library.EXTENSION).with_suffix(".version")
    (tmp_path / label.name).write_bytes(label.read_bytes())
    (tmp_path / name).write_bytes(library.path_of(name).read_bytes()[:kept])
    ask = "extension_path" if name == library.EXTENSION else "load"
    program = (
        "import sys\nfrom pathlib import Path\nfrom deploypruner.errors import KernelError\n"
        "from deploypruner.sparse import library\n"
        "library.path_of = lambda name: Path(sys.argv[1]) / name\n"
        f"try:\n    library.{ask}()\nexcept KernelError as error:\n    print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"{tmp_path / name}' is cut off: it has" in done.stdout


def test_list_targets_says_which_kernels_run_and_which_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPLOYPRUNER_TARGET", raising=False)
    here = library.targets()
    said = run_cli("list", "targets").out
    assert f"sparse kernels: {here[-1]}, the fastest of those that this CPU runs: {', '.join(here)}" in said
    for name in library.known_targets():
        assert name in said
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "scalar")
    assert "sparse kernels: scalar, which DEPLOYPRUNER_TARGET says" in run_cli("list", "targets").out
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "avx9000")
    said = run_cli("list", "targets").out
    assert "sparse kernels: none, DEPLOYPRUNER_TARGET=avx9000 cannot run here" in said
