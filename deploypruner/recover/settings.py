"""The fine-tuning recipe, and the learning rate it prescribes at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from deploypruner.errors import RecipeError, nearest
from deploypruner.recover.optimizers import Value, check_optimizer, default_rate
from deploypruner.recover.precision import AMP, Amp

Accelerator = Literal["auto", "cpu", "cuda"]
Schedule = Literal["cosine", "step"]
_STEP = 0.4, 0.1  # where the rate of "step" falls, and to what share


@dataclass(frozen=True)
class FinetuneSettings:
    """How the pruned model is trained: linear warm-up of the learning rate, then its schedule.

    Args:
        epochs: Passes over the data, >= 1.
        batch_size: Samples per step, >= 1.
        lr: Highest learning rate, > 0; None for 0.02 with SGD, and for torch's own default with other optimizers.
        optimizer: Name of a class of torch.optim in any case: "sgd" (with Nesterov momentum), "adamw", ...
        optimizer_parameters: Its other arguments, such as {"betas": [0.9, 0.99]}.
        momentum: Of SGD, in (0, 1).
        weight_decay: Of parameters of two axes or more, as the optimizer understands it (L2 penalty in SGD,
            decoupled in AdamW); norms and biases have none. >= 0.
        warmup: Fraction of all steps over which the rate rises linearly, in [0, 1).
        schedule: What the rate does then: "cosine", half a cosine to zero, or "step", a tenth from 40 % of all steps
            on (MiR, arXiv:2201.02620).
        patience: Stop after so many epochs without a better validation result, and keep the best epoch's weights;
            >= 0, 0 trains all epochs and keeps the last one's. Without validation nothing stops.
        label_smoothing: In [0, 1).
        distill: Weight of the dense model's outputs against the labels, in [0, 1]; 1 where there are none.
        temperature: Of the distillation, > 0.
        mimic: Weight of the dense model's features beside its outputs and the labels, >= 0; 0 for outputs alone.
        freeze_batchnorm: Train in evaluation mode: batch norm normalises by its running statistics, which stay, and
            dropout is off. For few images.
        ema: Decay per step of the moving average of the weights, which validation and the end of training use, in
            [0, 1); 0 for the last weights themselves. 0.998 averages over about 500 steps.
        amp: Numbers of the forward pass: "off" (float32), "bf16" or "fp16" (with loss scaling), or "auto": bf16 on a
            CPU that has instructions for it, unless the network has depthwise convolutions; else off. Weights, masks
            and optimizer stay float32.
        accelerator: "cpu", "cuda", or "auto": where the model is.
        devices: Processes that share every batch, each on a device of its own (on a CPU: on one thread).
        hosts: Machines with `devices` processes each; MASTER_ADDR, MASTER_PORT and NODE_RANK say where the first
            one is and which one this is.
        clip_norm: Largest norm of the whole gradient, > 0; `inf` for no clipping.
        augment: Whether the data set may flip and shift its training samples.
        channels_last: Feed 4-D inputs in NHWC memory order, which trains convolutional networks faster on a
            CPU; needs a model that never calls `view` on a feature map.
        seed: Decides the order of the samples, their augmentation and dropout.

    Raises:
        RecipeError: A value outside its range.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float | None = None
    optimizer: str = "sgd"
    optimizer_parameters: dict[str, Value] = field(default_factory=dict)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    patience: int = 0
    label_smoothing: float = 0.0
    distill: float = 0.5
    temperature: float = 4.0
    mimic: float = 0.0
    freeze_batchnorm: bool = False
    ema: float = 0.0
    amp: Amp = "auto"
    accelerator: Accelerator = "auto"
    devices: int = 1
    hosts: int = 1
    clip_norm: float = 5.0
    augment: bool = True
    channels_last: bool = False
    seed: int = 0

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
                raise RecipeError(f"{name} must be {allowed}, got {value}", hint=f"set {name} to a value {allowed}")
        for name, value, known in (
            ("amp", self.amp, AMP),
            ("accelerator", self.accelerator, get_args(Accelerator)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if value not in known:
                raise RecipeError(f"no {name} called '{value}'", hint=nearest(value, known))
        check_optimizer(self.optimizer, self.optimizer_parameters, momentum=self.momentum)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, where none was given the optimizer's own."""
        return default_rate(self.optimizer) if self.lr is None else self.lr


def learning_rate(settings: FinetuneSettings, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear rise to `peak_lr`, then down as the schedule says."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.peak_lr * (step + 1) / warm
    if settings.schedule == "step":
        at, share = _STEP
        return settings.peak_lr * (1.0 if step < at * steps else share)
    return settings.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
