"""The longest silence of each command: how long a terminal shows nothing new while somebody waits.

    python -m benchmarks.silence
    python -m benchmarks.silence --only demo --only validate

Each command runs in a pseudo-terminal. Every byte that it writes counts as news, because the live line changes with
every drawing. Printed are the time to the first byte, from there to the last one the longest time without news, with
what was on the screen before it, and the time from the last byte to the prompt. In Python the first byte is written
by the script itself, once it has loaded torch and its model. The network is that of the demo,
trained for one epoch. `measure`, `validate`, `compare`, `report` and `export` look at the builds of `demo` and
`compile`: name those, too, with --only.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.terminal import in_terminal
from deploypruner.cli.demo import IMAGE_SIZE, digits_data, train_demo_model
from deploypruner.export.to_onnx import Onnx
from deploypruner.sparsity.patterns import make_pattern

COMMANDS = {
    "plan": ("plan", "model.pt2", "--macs", "0.5", "--time"),
    "bench": ("bench", "model.onnx", "zeros.onnx", "--data", "digits.npz", "--seconds", "5"),
    "quantize": ("quantize", "model.onnx", "--data", "digits.npz", "--seconds", "5"),
    "sparsify": ("sparsify", "zeros.onnx", "--data", "digits.npz", "--seconds", "5"),
    "demo": ("demo", "--out", "demo"),
    "measure": ("measure", "demo", "--seconds", "5"),
    "compile": (
        *("compile", "model.pt2", "--data", "digits.npz", "--speedup", "1.5", "--epochs", "1"),
        *("--search-minutes", "1", "--seconds", "5"),
    ),
    "validate": ("validate", "demo", "--max-latency", "50ms", "--min-accuracy", "0.5", "--data", "digits.npz"),
    "compare": ("compare", "demo", "build", "--html", "compared.html"),
    "report": ("report", "demo"),
    "export": ("export", "demo"),
    "frontier": (
        *("frontier", "model.pt2", "--data", "digits.npz", "--speedups", "1.2,1.5", "--epochs", "1"),
        *("--search-minutes", "0.5", "--seconds", "5"),
    ),
    "doctor": ("doctor",),
    "init": ("init", "model.pt2"),
    "cache": ("cache", "list"),
    "list": ("list", "criteria"),
    "targets": ("list", "targets"),
    "help": ("--help",),
    "wrong": ("compile", "model.pt2", "--latency", "fast"),
    "python": (),
}
# In Python, where nobody asked for anything to be shown.
IN_PYTHON = """
import torch, deploypruner as dp
model = torch.export.load("model.pt2")
print("calls dp.compile", flush=True)
dp.compile(model, (torch.zeros(2, 1, 16, 16),), macs=0.5, data="digits.npz", out="python", epochs=1)
"""


@dataclass(frozen=True)
class Silence:
    """What a terminal saw of one command.

    Args:
        seconds: From its start to its end.
        first: From its start to the first byte.
        longest: Without a byte, between the first and the last one.
        end: From the last one to the end.
        before: Last words before the longest silence.
        code: How it ended.
    """

    seconds: float
    first: float
    longest: float
    end: float
    before: str
    code: int


def watched(command: list[str], folder: Path) -> Silence:
    """Run a command in a pseudo-terminal."""
    last, longest, first, before, tail = 0.0, 0.0, 0.0, "", b""
    for news in in_terminal(command, folder):
        if news.code is not None:
            return Silence(news.at, first, longest, news.at - last, before, news.code)
        if not first:
            first = news.at
        elif news.at - last > longest:
            longest, before = news.at - last, _words(tail)
        last, tail = news.at, (tail + news.text)[-400:]
    raise AssertionError("a command has an end")


def _words(tail: bytes) -> str:
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", tail.decode(errors="replace"))
    lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1] if lines else ""


def prepare(folder: Path) -> None:
    """Put model.pt2, model.onnx, zeros.onnx and digits.npz into a folder."""
    x, y, x_val, y_val = digits_data()
    np.savez(folder / "digits.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    model = train_demo_model(epochs=1)
    example = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), folder / "model.pt2")
    Onnx().write(model, (example[:1],), folder / "model.onnx", dynamic_batch=True)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.weight[0].numel() >= 64:
                units = make_pattern("1x4").units(layer.weight.abs())
                layer.weight *= units.mask(layer.weight.abs(), units.per_row // 5)
    Onnx().write(model, (example[:1],), folder / "zeros.onnx", dynamic_batch=True)


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(COMMANDS)), help="Commands to watch; all without it.")
def main(only: tuple[str, ...]) -> None:
    """Print a line for each command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        click.echo(f"{'command':9} {'took':>7} {'first':>7} {'longest':>8} {'end':>7}  exit  before it")
        for command in only or COMMANDS:
            words = ["-m", "deploypruner", *COMMANDS[command]] if COMMANDS[command] else ["-c", IN_PYTHON]
            found = watched(words, folder)
            click.echo(
                f"{command:9} {found.seconds:5.0f} s {found.first:5.1f} s {found.longest:6.1f} s "
                f"{found.end:5.1f} s  {found.code:4}  {found.before[:60]}"
            )


if __name__ == "__main__":
    main()
