"""What a person sees: terminals of 80 and 120 columns as text, pages as pictures, of builds made for it.

    nice python -m benchmarks.screens --out screens/            # about ten minutes, then looks at what is there
    nice python -m benchmarks.screens --out screens/ --only busy

The builds are a demo, one whose pruning lost, the demo timed again while every core was busy, and one of a network of
152 layers with random weights; `compare` has four of them, and the page of a thousand layers is that of the 152 with
its table repeated. A build that is there is not made again. Pictures need Chromium: desktop, 400 px, dark, and as
printed. Each is cut below its last line.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor, nn

from benchmarks.browser import BROWSER, headless
from benchmarks.terminal import in_terminal
from deploypruner.cli.demo import IMAGE_SIZE, digits_data, train_demo_model
from deploypruner.report import read_report, write_report_json

_QUICK = ("--data", "digits.npz", "--criterion", "taylor", "--seconds", "8")
_LEAST = ("--runtime", "onnxruntime", "--seconds", "8")
BUILDS = {
    "demo": ("demo", "--out", "demo"),
    "lost": (
        *("compile", "model.pt2", *_QUICK, "--macs", "0.04", "--epochs", "0", "--accuracy-drop", "0.5"),
        *("--out", "lost"),
    ),
    "busy": ("measure", "busy", "--seconds", "8"),  # a copy of the demo
    "half": ("compile", "model.pt2", *_QUICK, "--macs", "0.5", "--epochs", "2", "--out", "half"),
    "deep": ("compile", "deep.pt2", *_LEAST, "--macs", "0.5", "--out", "deep"),
}
COMPARED = ("demo", "lost", "busy", "half")
# Name -> the command whose screen is kept.
SCREENS = {
    **{name: ("report", name) for name in BUILDS},
    "plan": ("plan", "deep.pt2", "--macs", "0.5"),
    "compared": ("compare", *COMPARED, "--html", "compared.html"),
    "thousand": ("report", "thousand"),
}
_PAGE = {"compared": "compared.html"}
_LONGEST = 16_000  # pixels, which is what a picture of Chromium may have
# Name -> width in pixels, and what of the page's own rules holds.
_VIEWS: dict[str, tuple[int, Callable[[str], str]]] = {
    "desktop": (1280, lambda page: page),
    "400px": (400, lambda page: page),
    "dark": (1280, lambda page: page.replace("(prefers-color-scheme: dark)", "all")),
    "print": (794, lambda page: page.replace("@media print", "@media all")),  # A4 at 96 dots an inch
}


class Deep(nn.Module):
    """A stem, 50 residual blocks of three convolutions and a head: 152 layers, [N, 3, 32, 32] -> [N, 10]."""

    def __init__(self, blocks: int = 50) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(32, 16, 1), nn.ReLU()),
                *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
                nn.Conv2d(16, 32, 1),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(32, 10)
        for block in self.blocks:  # a residual stream that stays of one size
            with torch.no_grad():
                block[4].weight *= 0.1  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] -> [N, 10]."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(dim=(2, 3)))


def prepare(folder: Path) -> None:
    """Put digits.npz, model.pt2 and deep.pt2 there, where they are missing."""
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    x, y, x_val, y_val = digits_data()
    np.savez(folder / "digits.npz", x=x, y=y, x_val=x_val, y_val=y_val)
    if not (folder / "model.pt2").exists():
        example = torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE)
        model = train_demo_model(epochs=3)
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), folder / "model.pt2")
    if not (folder / "deep.pt2").exists():
        torch.manual_seed(0)
        deep = torch.export.export(Deep().eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shapes)
        torch.export.save(deep, folder / "deep.pt2")


def spin() -> None:
    """Keep a core busy."""
    while True:
        pass


@contextmanager
def busy_cores() -> Iterator[None]:
    """A process for every core, as long as the block runs."""
    others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.terminate()


def build(name: str, folder: Path) -> None:
    """Make one of the builds, if it is not there."""
    if (folder / name / "report.json").exists():
        return
    command = ["-m", "deploypruner", *BUILDS[name]]
    if name == "busy":
        build("demo", folder)
        shutil.copytree(folder / "demo", folder / "busy")
        with busy_cores():
            screen(command, folder, columns=120)
    else:
        screen(command, folder, columns=120)
    assert (folder / name / "report.json").exists(), f"there is no build '{name}'"


def thousand_layers(folder: Path) -> None:
    """A build of a thousand layers, so far as its page goes."""
    report = read_report(folder / "deep")
    layers = tuple(
        replace(layer, name=f"{layer.name}.of_copy_{copy}") for copy in range(7) for layer in report.layers
    )
    (folder / "thousand").mkdir(exist_ok=True)
    write_report_json(replace(report, layers=layers[:1000]), folder / "thousand" / "report.json")


def screen(command: list[str], folder: Path, *, columns: int) -> str:
    """What is left on a terminal once the command has ended, without colours."""
    seen = b"".join(news.text for news in in_terminal(command, folder, columns=columns)).decode(errors="replace")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.replace("\r\n", "\n"))
    lines = [line.rpartition("\r")[2].rstrip() for line in plain.split("\n")]
    return "\n".join(lines).strip("\n") + "\n"


def picture(page: str, width: int, target: Path) -> None:
    """Draw a page in a window of this width, and cut off what is empty below it."""
    inside = page.replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<iframe width="{width}" height="{_LONGEST}" style="border:0" srcdoc="{inside}"></iframe>'
    with tempfile.TemporaryDirectory() as name:
        file, drawn = Path(name, "page.html"), Path(name, "page.png")
        file.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin:0">{frame}', encoding="utf-8")
        window = ("--hide-scrollbars", f"--window-size={max(width, 500)},{_LONGEST}")
        command = headless(
            file, Path(name, "profile"), *window, f"--screenshot={drawn}", "--virtual-time-budget=5000"
        )
        subprocess.run(command, capture_output=True, timeout=300, check=True)
        with Image.open(drawn) as image:
            whole = image.convert("RGB").crop((0, 0, width, image.height))
    ground = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    box = ImageChops.difference(whole, ground).getbbox()
    whole.crop((0, 0, width, min(whole.height, (box[3] if box else 0) + 40))).save(target)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of builds, texts and pictures.")
@click.option("--only", multiple=True, type=click.Choice(list(SCREENS)), help="Screens to take; all without it.")
def main(out: Path, only: tuple[str, ...]) -> None:
    """Make what is missing, and print the name of every text and picture."""
    out.mkdir(parents=True, exist_ok=True)
    prepare(out)
    for name in only or SCREENS:
        needed = {"compared": COMPARED, "thousand": ("deep",), "plan": ()}.get(name, (name,))
        for one in needed:
            build(one, out)
        if name == "thousand":
            thousand_layers(out)
        for columns in (80, 120):
            text = out / f"{name}-{columns}.txt"
            text.write_text(screen(["-m", "deploypruner", *SCREENS[name]], out, columns=columns), encoding="utf-8")
            click.echo(str(text))
        page = out / _PAGE.get(name, f"{name}/report.html")
        if BROWSER is not None and page.exists():
            for view, (width, rules) in _VIEWS.items():
                target = out / f"{name}-{view}.png"
                picture(rules(page.read_text(encoding="utf-8")), width, target)
                click.echo(str(target))
    if BROWSER is None:
        click.echo("no pictures: Chromium is not installed", err=True)


if __name__ == "__main__":
    main()
