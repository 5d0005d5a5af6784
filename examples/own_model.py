"""From a model of your own and a folder of images to the one file that is shipped: no GPU, no download.

    python examples/own_model.py [FOLDER]

makes in FOLDER (by default ./own-model) a small image folder, trains a small network on it, compiles it to half its
multiply-adds, copies the file to ship, and runs that with ONNX Runtime alone. It takes about 35 s of one core, and
minutes where others compute.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

import deploypruner as dp
from deploypruner.recipe import MeasureRecipe, Recipe

SIZE = 32  # pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what DeployPruner takes for colour images unless told


class ShapeNet(nn.Module):
    """Your model: any module that returns tensors. Here images [N, 3, 32, 32] -> scores [N, 3]."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] -> [N, 3]."""
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.body(x)))
        return self.head(x.mean((2, 3)))


def draw(folder: Path, *, train: int = 240, val: int = 60) -> None:
    """An image folder: FOLDER/train/CLASS/*.png and FOLDER/val/CLASS/*.png, of circles, squares and triangles."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            name = ("circle", "square", "triangle")[number % 3]
            image = Image.fromarray(random.integers(0, 90, (SIZE, SIZE, 3), np.uint8))
            left, top = (int(n) for n in random.integers(1, SIZE - 21, 2))
            box, colour = (left, top, left + 20, top + 20), tuple(int(n) for n in random.integers(120, 255, 3))
            pen = ImageDraw.Draw(image)
            if name == "circle":
                pen.ellipse(box, fill=colour)
            elif name == "square":
                pen.rectangle(box, fill=colour)
            else:
                pen.polygon([(left, top + 20), (left + 10, top), (left + 20, top + 20)], fill=colour)
            path = folder / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def load(folder: Path) -> tuple[Tensor, Tensor]:
    """Every image below FOLDER as the model takes it, [N, 3, 32, 32], and the number of its class."""
    files = sorted(folder.glob("*/*.png"))
    names = sorted({file.parent.name for file in files})
    pixels = np.stack([np.asarray(Image.open(file), np.float32) for file in files]) / 255
    x = ((pixels - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    return torch.from_numpy(x), torch.tensor([names.index(file.parent.name) for file in files])


def train(model: nn.Module, x: Tensor, y: Tensor, *, epochs: int = 15) -> None:
    """The training that your model has behind it already."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(24):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    model.eval()


def main(folder: Path) -> float:
    """Do all of it in FOLDER; accuracy of the shipped file on the validation images."""
    torch.manual_seed(0)
    draw(folder / "shapes")
    model = ShapeNet()
    train(model, *load(folder / "shapes" / "train"))

    # The budget: half of the multiply-adds. latency="0.5ms" and speedup=2 are budgets of measured time; they time the
    # layers first, and plan for this machine. The recipe holds everything else; here it only keeps the timing short.
    build = dp.compile(
        model,
        torch.zeros(1, 3, SIZE, SIZE),
        data=folder / "shapes",
        macs=0.5,
        epochs=3,
        runtimes=("onnxruntime",),
        recipe=Recipe(measure=MeasureRecipe(seconds=3)),
        out=folder / "build",
        overwrite=True,
    )
    print(build)

    # The file to ship, with what it expects; the build's page, report.html, says the same.
    ship = build.report.deploy
    shipped = folder / "shipped"
    shipped.mkdir(exist_ok=True)
    for name in ship["files"]:
        shutil.copy(build.folder / name, shipped)
    print(f"ship {', '.join(ship['files'])}, {ship['bytes']} bytes, for {ship['runtime']}:")
    print("\n".join(f"    {line}" for line in ship["load"]))

    # On the other machine: nothing of DeployPruner, nothing of torch.
    session = onnxruntime.InferenceSession(shipped / ship["file"])
    x, y = load(folder / "shapes" / "val")
    (scores,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    right = float((scores.argmax(1) == y.numpy()).mean())
    print(f"the shipped file is right on {right:.1%} of {len(x)} images")
    return right


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "own-model"))
