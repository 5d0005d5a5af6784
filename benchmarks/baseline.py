"""The dense baseline, kept in `WORK`: published weights fine-tuned once on the JPEG images, or trained from scratch.

Run it as `nice python -m benchmarks.baseline --net resnet20 --epochs 4 --threads 1`; a net without published weights
wants `--lr 0.1 --weight-decay 5e-4` and more epochs, the vision transformer `--optimizer adamw --lr 0.001
--weight-decay 0.05`. `--amp bf16` is twice as fast on CPUs that compute it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.cifar10 import SHARED, WORK, cifar10
from benchmarks.models import NETS, PUBLISHED
from deploypruner.errors import InputError
from deploypruner.progress import progress_for
from deploypruner.recipe.finetune import AMP, Amp, FinetuneSettings
from deploypruner.train.finetune import finetune
from deploypruner.train.validate import top1_percent


def start(net: str) -> nn.Module:
    """The network with the weights trained on lossless CIFAR-10, or seeded random ones where there are none."""
    torch.manual_seed(0)
    model = NETS[net]()
    if net in PUBLISHED:
        model.load_state_dict(load_file(SHARED / f"{net}_cifar10.safetensors"))
    return model.eval()


def path_of(net: str) -> Path:
    return WORK / f"{net}-jpeg.safetensors"


def baseline(net: str) -> nn.Module:
    """The network fine-tuned on the JPEG images.

    Raises:
        InputError: It has not been made yet.
    """
    if not path_of(net).exists():
        raise InputError(f"no fine-tuned {net} in {WORK}", hint=f"run `python -m benchmarks.baseline --net {net}`")
    model = NETS[net]()
    model.load_state_dict(load_file(path_of(net)))
    return model.eval()


@click.command()
@click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
@click.option("--epochs", default=5, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--lr", default=0.02, show_default=True)
@click.option("--weight-decay", default=1e-4, show_default=True)
@click.option("--optimizer", default="sgd", show_default=True)
@click.option("--train-limit", type=int, help="train on so many images only (the test set stays whole)")
@click.option("--amp", type=click.Choice(AMP), default="off", show_default=True)
def main(
    net: str,
    epochs: int,
    threads: int,
    lr: float,
    weight_decay: float,
    optimizer: str,
    train_limit: int | None,
    amp: Amp,
) -> None:
    """Train on the JPEG images; an interrupted run continues."""
    torch.set_num_threads(threads)
    model, data = start(net), cifar10(train_limit)
    untouched = top1_percent(model, data.val)
    click.echo(f"{net} untouched: {untouched:.2f} %", err=True)
    begun = time.perf_counter()
    history = finetune(
        model,
        None,
        data.train,
        FinetuneSettings(
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            batch_size=128,
            channels_last=True,
            amp=amp,
        ),
        checkpoint=WORK / f"{net}-baseline.checkpoint",
        progress=progress_for(),
        validate=lambda module: top1_percent(module, data.val),
    )
    save_file(model.state_dict(), path_of(net))
    about = {
        "net": net,
        "untouched_percent": untouched,
        "percent_by_epoch": [epoch.score for epoch in history.epochs],
        "epochs_resumed": history.resumed,
        "seconds": time.perf_counter() - begun,
        "lr": lr,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "train_limit": train_limit,
        "amp": amp,
        "threads": threads,
    }
    path_of(net).with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    click.echo(json.dumps(about), err=True)


if __name__ == "__main__":
    main()
