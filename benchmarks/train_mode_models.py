"""Architectures that do something else in training than in evaluation, each with what that is.

Random but lively weights, small images and configurations: what is compared is behaviour, not accuracy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.lively import liven
from benchmarks.zoo_models import load as load_of_zoo
from deploypruner.graph.inputs import Inputs
from deploypruner.sources.torchvision_ops import import_torchvision

_SIDE = 64
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_VISION = {**_BERT, "image_size": 32, "patch_size": 8}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
_BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "use_cache": False}
_SPEECH = {**_BERT, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
_SPEECH |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32}
_DEBERTA = {**_BERT, "vocab_size": 99, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99, "use_cache": False}
_OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "vocab_size": 99}
_OPT |= {"word_embed_proj_dim": 32, "use_cache": False}
_DECODER = {**_BERT, "num_key_value_heads": 2, "vocab_size": 99, "use_cache": False}
_QWEN = {**_DECODER, "head_dim": 8, "attention_dropout": 0.1}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "use_cache": False}


@dataclass(frozen=True)
class Case:
    """One architecture.

    Args:
        unusual: What it does in training only, in a few words.
        make: The module and its inputs.
    """

    unusual: str
    make: Callable[[], tuple[nn.Module, Inputs]]


def _torchvision(name: str, side: int = _SIDE, **settings: Any) -> tuple[nn.Module, Inputs]:
    models = import_torchvision().models
    find = getattr(models, name, None) or getattr(models.segmentation, name)
    return find(weights=None, **settings), (torch.randn(4, 3, side, side),)


def _library(name: str) -> Any:
    """A module of timm or transformers; on their own, these import a torchvision that may not fit this torch."""
    import_torchvision()
    return importlib.import_module(name)


def _timm(name: str, side: int = _SIDE, **settings: Any) -> tuple[nn.Module, Inputs]:
    return _library("timm").create_model(name, num_classes=10, **settings), (torch.randn(4, 3, side, side),)


def _transformers(model: str, config: str, inputs: Inputs, **settings: Any) -> tuple[nn.Module, Inputs]:
    transformers = _library("transformers")
    return getattr(transformers, model)(getattr(transformers, config)(**settings)), inputs


def _text(model: str, config: str, **settings: Any) -> tuple[nn.Module, Inputs]:
    ids = torch.randint(5, 90, (4, 12))
    return _transformers(model, config, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **settings)


def _translator(model: str, config: str, **settings: Any) -> tuple[nn.Module, Inputs]:
    ids = torch.randint(5, 90, (4, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :7]}
    return _transformers(model, config, inputs, **settings)


def _images(model: str, config: str, side: int = 32, **settings: Any) -> tuple[nn.Module, Inputs]:
    return _transformers(model, config, {"pixel_values": torch.randn(4, 3, side, side)}, **settings)


def _speech(model: str, config: str, **settings: Any) -> tuple[nn.Module, Inputs]:
    return _transformers(model, config, {"input_values": torch.randn(4, 800)}, **{**_SPEECH, **settings})


def _vit(name: str = "vit_tiny_patch16_224", **settings: Any) -> tuple[nn.Module, Inputs]:
    return _timm(name, 32, **{"img_size": 32, "patch_size": 8, "depth": 2, **settings})


def _distilled() -> tuple[nn.Module, Inputs]:
    model, inputs = _vit("deit_tiny_distilled_patch16_224")
    assert isinstance(model, _library("timm.models.deit").VisionTransformerDistilled), "it has one head"
    model.set_distilled_training(True)
    return model, inputs


def _split_batch_norm() -> tuple[nn.Module, Inputs]:
    model, inputs = _timm("resnet18")
    return _library("timm.layers").convert_splitbn_model(model, 2), inputs


def _sync_batch_norm() -> tuple[nn.Module, Inputs]:
    model, inputs = _timm("resnet18", drop_path_rate=0.2)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model), inputs


def _normed_resnet(norm: str, **settings: Any) -> tuple[nn.Module, Inputs]:
    kind = getattr(_library("timm.layers"), norm, None) or getattr(nn, norm)
    return _timm("resnet18", norm_layer=partial(kind, **settings))


def _spectral_resnet() -> tuple[nn.Module, Inputs]:
    model, inputs = _timm("resnet10t")
    for layer in list(model.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.utils.parametrizations.spectral_norm(layer)
    return model, inputs


def _activated(activation: Callable[[], nn.Module]) -> tuple[nn.Module, Inputs]:
    model, inputs = _torchvision("vgg11_bn", 32, num_classes=10)
    for owner in list(model.modules()):
        for name, layer in owner.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(owner, name, activation())
    return model, inputs


def _drop_block() -> tuple[nn.Module, Inputs]:
    model, inputs = _torchvision("resnet18", 128, num_classes=10)
    model.get_submodule("layer3").add_module("drop", import_torchvision().ops.DropBlock2d(0.1, 3))
    return model, inputs


def _faster_rcnn() -> tuple[nn.Module, Inputs]:
    find = import_torchvision().models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    return find(weights=None, weights_backbone=None), ([torch.rand(3, 96, 96), torch.rand(3, 96, 96)],)


def _torchvision_vit() -> tuple[nn.Module, Inputs]:
    make = import_torchvision().models.VisionTransformer
    model = make(32, 8, 2, 4, 32, 64, dropout=0.1, attention_dropout=0.2, num_classes=10)
    return model, (torch.randn(4, 3, 32, 32),)


_TORCHVISION: dict[str, Case] = {
    "googlenet": Case(
        "two auxiliary heads, dropout", lambda: _torchvision("googlenet", init_weights=False, aux_logits=True)
    ),
    "efficientnet_b0": Case("stochastic depth, dropout", lambda: _torchvision("efficientnet_b0")),
    "swin_v2_t": Case("stochastic depth, logit scale", lambda: _torchvision("swin_v2_t")),
    "VisionTransformer": Case("dropout in attention and MLP", _torchvision_vit),
    "deeplabv3_mobilenet_v3_large": Case(
        "dropout behind parallel branches",
        lambda: _torchvision("deeplabv3_mobilenet_v3_large", weights_backbone=None, aux_loss=True),
    ),
    "resnet18 + DropBlock2d": Case("blocks dropped from maps", _drop_block),
    "vgg11_bn + RReLU": Case("random slopes", lambda: _activated(nn.RReLU)),
    "vgg11_bn + AlphaDropout": Case("noise that keeps mean and variance", lambda: _activated(nn.AlphaDropout)),
    "vgg11_bn + FeatureAlphaDropout": Case("the same by channel", lambda: _activated(nn.FeatureAlphaDropout)),
    "inception_v3": Case(
        "an auxiliary head", lambda: _torchvision("inception_v3", 299, init_weights=False, aux_logits=True)
    ),
    "fasterrcnn_mobilenet_v3": Case("wants targets and returns losses", _faster_rcnn),
}
_TIMM: dict[str, Case] = {
    "resnet18, drop_block_rate": Case("blocks dropped from maps", lambda: _timm("resnet18", drop_block_rate=0.2)),
    "resnet18 + InstanceNorm2d": Case(
        "instance norm with statistics",
        lambda: _normed_resnet("InstanceNorm2d", affine=True, track_running_stats=True),
    ),
    "resnet18, momentum None": Case("cumulative statistics", lambda: _normed_resnet("BatchNorm2d", momentum=None)),
    "resnet18 + EvoNorm2dB0": Case("variance of the batch", lambda: _normed_resnet("EvoNorm2dB0")),
    "resnet18 + SyncBatchNorm": Case("synchronised batch norm, drop path", _sync_batch_norm),
    "resnet18 + SplitBatchNorm2d": Case("ghost batch norm: one for each part of the batch", _split_batch_norm),
    "resnet10t + spectral_norm": Case("power iterations", _spectral_resnet),
    "repvgg_a0": Case("parallel branches, to be merged later", lambda: _timm("repvgg_a0")),
    "mobileone_s0": Case("parallel branches, to be merged later", lambda: _timm("mobileone_s0")),
    "nfnet_l0": Case("standardised weights, drop path", lambda: _timm("nfnet_l0", drop_path_rate=0.2)),
    "vit_tiny, all its dropouts": Case(
        "five kinds of dropout",
        lambda: _vit(drop_rate=0.1, pos_drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2),
    ),
    "vit_tiny, patch_drop_rate": Case("fewer tokens", lambda: _vit(patch_drop_rate=0.25)),
    "vit_tiny, qk_norm": Case("norms of q and k, drop path", lambda: _vit(qk_norm=True, drop_path_rate=0.2)),
    "deit_tiny, distilled": Case("two outputs instead of their mean", _distilled),
    "levit_128s": Case(
        "the mean of two heads, drop path", lambda: _timm("levit_128s", 128, img_size=128, drop_path_rate=0.2)
    ),
    "volo_d1_224": Case("tokens mixed by NumPy's random numbers", lambda: _timm("volo_d1_224", img_size=_SIDE)),
    "sequencer2d_s": Case(
        "LSTMs, drop path", lambda: _timm("sequencer2d_s", img_size=_SIDE, layers=(1, 1, 1, 1), drop_path_rate=0.2)
    ),
}
_TRANSFORMERS: dict[str, Case] = {
    "bert": Case("dropout", lambda: _text("BertModel", "BertConfig", **_BERT, vocab_size=99)),
    "gpt2": Case(
        "dropout",
        lambda: _text("GPT2Model", "GPT2Config", n_embd=32, n_layer=2, n_head=4, vocab_size=99, use_cache=False),
    ),
    "albert": Case("dropout in shared layers", lambda: _text("AlbertModel", "AlbertConfig", **_BERT, vocab_size=99)),
    "deberta_v2": Case(
        "dropout with its own backward", lambda: _text("DebertaV2Model", "DebertaV2Config", **_DEBERTA)
    ),
    "opt, layerdrop": Case(
        "layers skipped by a coin",
        lambda: _text("OPTModel", "OPTConfig", **_OPT, layerdrop=0.1),
    ),
    "bart, layerdrop": Case(
        "layers skipped by a coin",
        lambda: _translator("BartModel", "BartConfig", **_BART, vocab_size=99, encoder_layerdrop=0.1),
    ),
    "t5": Case("dropout, relative positions", lambda: _translator("T5Model", "T5Config", **_T5)),
    "switch_transformers": Case(
        "noise at the gates of experts",
        lambda: _translator("SwitchTransformersModel", "SwitchTransformersConfig", **_T5, num_experts=2),
    ),
    "mixtral, jitter": Case(
        "noise at the gates of experts",
        lambda: _text("MixtralModel", "MixtralConfig", **_DECODER, num_local_experts=2, router_jitter_noise=0.1),
    ),
    "wav2vec2": Case("masked spans, layers skipped, weight norm", lambda: _speech("Wav2Vec2Model", "Wav2Vec2Config")),
    "hubert, no masks": Case(
        "dropout, weight norm",
        lambda: _speech("HubertModel", "HubertConfig", layerdrop=0.0, apply_spec_augment=False),
    ),
    "wav2vec2, quantizer": Case(
        "Gumbel noise", lambda: _speech("Wav2Vec2ForPreTraining", "Wav2Vec2Config", layerdrop=0.0, mask_time_prob=0.0)
    ),
    "dinov2": Case(
        "layer scale, stochastic depth", lambda: _images("Dinov2Model", "Dinov2Config", **_VISION, drop_path_rate=0.2)
    ),
    "swin": Case(
        "stochastic depth by window",
        lambda: _images(
            "SwinModel", "SwinConfig", 64, image_size=64, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4
        ),
    ),
    "qwen3": Case(
        "norms of q and k, dropout",
        lambda: _text("Qwen3Model", "Qwen3Config", **_DECODER, head_dim=8, attention_dropout=0.1),
    ),
}
_OWN: dict[str, Case] = {
    "lstm_classifier": Case("dropout between LSTM layers", lambda: load_of_zoo("own:lstm_classifier"))
}

CASES: dict[str, Case] = {
    f"{zoo}:{name}": case
    for zoo, cases in (("own", _OWN), ("transformers", _TRANSFORMERS), ("timm", _TIMM), ("torchvision", _TORCHVISION))
    for name, case in cases.items()
}


def load(name: str) -> tuple[nn.Module, Inputs]:
    """A lively model in evaluation mode and four samples.

    Raises:
        KeyError: No such case.
    """
    torch.manual_seed(0)
    module, inputs = CASES[name].make()
    module.eval()
    liven(module)
    return module, inputs
