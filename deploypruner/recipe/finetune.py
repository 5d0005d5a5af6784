"""How a model is trained: the settings of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from deploypruner.errors import RecipeError, nearest
from deploypruner.recipe.optimizers import Value, check_optimizer, default_rate
from deploypruner.recipe.option import RECOVERY, documented, option

Amp = Literal["auto", "off", "bf16", "fp16"]
AMP: tuple[Amp, ...] = get_args(Amp)
Accelerator = Literal["auto", "cpu", "cuda"]
Schedule = Literal["cosine", "step"]


@documented
@dataclass(frozen=True)
class FinetuneSettings:
    """How the pruned model is trained: linear warm-up of the learning rate, then its schedule.

    Raises:
        RecipeError: A value outside its range.
    """

    epochs: int = option(
        5,
        "Passes over the data, >= 1.",
    )
    batch_size: int = option(
        128,
        "Samples per step, >= 1.",
    )
    lr: float | None = option(
        None,
        "Highest learning rate, > 0; 0.02 with sgd, torch's own default with other optimizers.",
        flag="--lr",
        metavar="RATE",
        group=RECOVERY,
    )
    optimizer: str = option(
        "sgd",
        "Name of a class of torch.optim in any case: sgd (with Nesterov momentum), adamw, ...",
        flag="--optimizer",
        metavar="NAME",
        group=RECOVERY,
    )
    optimizer_parameters: dict[str, Value] = option(
        None,
        'Its other arguments, such as {"betas": [0.9, 0.99]}.',
        factory=dict,
    )
    momentum: float = option(
        0.9,
        "Momentum of SGD, in (0, 1).",
    )
    weight_decay: float = option(
        1e-4,
        "Decay of parameters of two axes or more, as the optimizer understands it (L2 penalty in SGD, decoupled in "
        "AdamW); norms and biases have none. >= 0.",
    )
    warmup: float = option(
        0.05,
        "Fraction of all steps over which the rate rises linearly, in [0, 1).",
    )
    schedule: Schedule = option(
        "cosine",
        'What the rate does then: "cosine", half a cosine to zero, or "step", a tenth from 40 % of all steps on'
        " (MiR, arXiv:2201.02620).",
    )
    patience: int = option(
        0,
        "Stop after so many epochs without a better validation result, and keep the best epoch's weights; >= 0,"
        " 0 trains all epochs and keeps the last one's. Without validation nothing stops.",
    )
    label_smoothing: float = option(
        0.0,
        "Share of every label that is spread over all classes, in [0, 1).",
    )
    distill: float = option(
        0.5,
        "Weight of the dense model's outputs against the labels, in [0, 1]; 1 where there are none.",
    )
    temperature: float = option(
        4.0,
        "Temperature of the distillation, > 0.",
    )
    mimic: float = option(
        0.0,
        "Weight of the dense model's features beside its outputs and the labels, >= 0; 0 for outputs alone.",
    )
    freeze_batchnorm: bool = option(
        False,
        "Training in evaluation mode: batch norm normalises by its running statistics, which stay, and dropout is "
        "off. For few images.",
    )
    ema: float = option(
        0.0,
        "Decay per step of an average of the weights that is kept in their place, in [0, 1), such as 0.998; 0 "
        "is off.",
        flag="--ema",
        metavar="DECAY",
        group=RECOVERY,
    )
    amp: Amp = option(
        "auto",
        "Numbers of the forward pass in training; auto: bf16 on a CPU with instructions for it, unless the "
        "network has depthwise convolutions; else float32.",
        flag="--amp",
        group=RECOVERY,
    )
    accelerator: Accelerator = option(
        "auto",
        '"cpu", "cuda", or "auto": where the model is.',
    )
    devices: int = option(
        1,
        "Number of processes that share every batch, each on a device of its own, at least 1.",
        flag="--devices",
        metavar="N",
        group=RECOVERY,
    )
    hosts: int = option(
        1,
        "Machines with `devices` processes each; MASTER_ADDR, MASTER_PORT and NODE_RANK say where the first one"
        " is and which one this is.",
    )
    clip_norm: float = option(
        5.0,
        "Largest norm of the whole gradient, > 0; `inf` for no clipping.",
    )
    augment: bool = option(
        True,
        "Permission for the data set to flip and shift its training samples.",
    )
    channels_last: bool = option(
        False,
        "NHWC memory order for 4-D inputs, which trains convolutional networks faster on a CPU; needs a "
        "model that never calls `view` on a feature map.",
    )
    seed: int = option(
        0,
        "Decides the order of the samples, their augmentation and dropout.",
    )

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("epochs", self.epochs >= 1, ">= 1"),
            ("batch_size", self.batch_size >= 1, ">= 1"),
            ("lr", self.lr is None or self.lr > 0, "> 0"),
            ("momentum", 0 < self.momentum < 1, "between 0 and 1"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("distill", 0 <= self.distill <= 1, "in [0, 1]"),
            ("mimic", self.mimic >= 0, ">= 0"),
            ("patience", self.patience >= 0, ">= 0"),
            ("temperature", self.temperature > 0, "> 0"),
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("devices", self.devices >= 1, ">= 1"),
            ("hosts", self.hosts >= 1, ">= 1"),
            ("clip_norm", self.clip_norm > 0, "> 0"),
        ):
            if not ok:
                value = getattr(self, name)
                raise RecipeError(
                    f"{name} must be {allowed}, got {value}", hint=f"set it to a value {allowed}", keys=(name,)
                )
        for name, value, known in (
            ("amp", self.amp, AMP),
            ("accelerator", self.accelerator, get_args(Accelerator)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in known:
                raise RecipeError(f"no {name} called '{value}'", hint=nearest(value, known), keys=(name,))
        check_optimizer(self.optimizer, self.optimizer_parameters, momentum=self.momentum)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, where none was given the optimizer's own."""
        return default_rate(self.optimizer) if self.lr is None else self.lr
