"""The models of the table: torchvision, timm and transformers architectures, and networks of our own.

Names are `torchvision:NAME`, `timm:NAME`, `transformers:NAME` (a small configuration of that family) and
`own:NAME` (`benchmarks.nets`). All weights are random and made lively.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lively import calibrate, liven
from benchmarks.nets import NETS
from deploypruner.graph.inputs import Inputs, tensors
from deploypruner.sources.model import load_model
from deploypruner.sources.torchvision_ops import import_torchvision

TORCHVISION = (
    "resnet50 mobilenet_v3_large shufflenet_v2_x1_0 regnet_y_400mf convnext_tiny vit_b_16 swin_t maxvit_t "
    "efficientnet_b0 densenet121 googlenet inception_v3"
).split()
SEGMENTATION = ("deeplabv3_resnet50", "fcn_resnet50", "lraspp_mobilenet_v3_large")
TIMM = (
    "vit_tiny_patch16_224 mobilenetv4_conv_small efficientvit_b0 ghostnet_100 fastvit_t8 repvgg_a0 mobileone_s0 "
    "edgenext_xx_small mobilevit_xxs levit_128s poolformer_s12 convnextv2_atto dla34 res2net50_26w_4s resnest14d "
    "cspdarknet53 efficientformer_l1 nfnet_l0 mixer_s32_224 tf_efficientnet_lite0 rexnet_100 starnet_s1 "
    "inception_next_tiny lcnet_100 hrnet_w18_small tiny_vit_5m_224 xcit_nano_12_p16_224 deit3_small_patch16_224 "
    "fbnetv3_b"
).split()

_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "use_cache": False}
_SWIN = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_CONVNEXT = {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]}
_SEGFORMER = {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "num_attention_heads": [1, 2, 3, 4]}
# Family -> model class, configuration class and its settings; a vocabulary means that the model reads text.
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", {**_TEXT, "vocab_size": 200}),
    "gpt2": ("GPT2Model", "GPT2Config", {**_GPT, "vocab_size": 200}),
    "vit": ("ViTModel", "ViTConfig", {**_TEXT, "image_size": 64, "patch_size": 16}),
    "swin": ("SwinModel", "SwinConfig", {**_SWIN, "image_size": 64}),
    "mobilevit": ("MobileViTModel", "MobileViTConfig", {"image_size": 64}),
    "convnext": ("ConvNextModel", "ConvNextConfig", {**_CONVNEXT, "image_size": 64}),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {**_SEGFORMER, "image_size": 64}),
}

ALL = (
    *(f"torchvision:{name}" for name in (*TORCHVISION, *SEGMENTATION)),
    *(f"timm:{name}" for name in TIMM),
    *(f"transformers:{name}" for name in TRANSFORMERS),
    *(f"own:{name}" for name in NETS),
)


def load(name: str) -> tuple[nn.Module, Inputs]:
    """A lively model in eval mode and two samples.

    Raises:
        KeyError: No such model of our own or configuration.
        DeployPrunerError: The zoo does not know it.
    """
    zoo, _, rest = name.partition(":")
    torch.manual_seed(0)
    loaders: dict[str, Callable[[str], tuple[nn.Module, Inputs]]] = {
        "own": _own,
        "transformers": _transformers,
        "torchvision": _torchvision,
    }
    module, inputs = loaders[zoo](rest) if zoo in loaders else _zoo(name)
    module.eval()
    liven(module)
    calibrate(module, inputs)
    return module, inputs


def _own(name: str) -> tuple[nn.Module, Inputs]:
    net = NETS[name]
    return net.make(), (torch.randn(2, *net.shape[1:]),)


def _torchvision(name: str) -> tuple[nn.Module, Inputs]:
    if name not in SEGMENTATION:
        return _zoo(f"torchvision:{name}")
    segmentation = import_torchvision().models.segmentation
    return getattr(segmentation, name)(weights=None, weights_backbone=None), (torch.randn(2, 3, 128, 128),)


def _zoo(name: str) -> tuple[nn.Module, Inputs]:
    module, example_inputs = untrained(name)
    return module, tuple(torch.randn(2, *t.shape[1:]) for t in example_inputs)


def untrained(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A zoo's model as the command line loads it, with random weights, and its example inputs."""
    loaded = load_model(f"{name}?pretrained=0")
    assert isinstance(loaded.module, nn.Module), f"{name} is no module"
    return loaded.module, tuple(tensors(loaded.example_inputs))


def _transformers(name: str) -> tuple[nn.Module, Inputs]:
    import_torchvision()  # transformers and timm import it on their own otherwise
    import transformers

    model, configuration, settings = TRANSFORMERS[name]
    module = getattr(transformers, model)(getattr(transformers, configuration)(**settings))
    if "vocab_size" not in settings:
        return module, {"pixel_values": torch.randn(2, 3, settings["image_size"], settings["image_size"])}
    ids = torch.randint(settings["vocab_size"], (2, 16))
    return module, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
