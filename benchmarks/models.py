"""The CIFAR ResNets of He et al. (arXiv:1512.03385, sec. 4.2), option A shortcuts without parameters; a MobileNetV2;
a net with squeeze-and-excitation; a VGG with batch norm, which has no shortcut at all; a small vision transformer.

Parameter names are those of the published weights in the shared data folder: `conv1, bn1, layerX.Y.conv1, linear`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut that costs no MACs.

    Where the shape changes, the shortcut takes every second pixel and puts zero channels on both sides.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride = stride
        self.added = after - before

    def forward(self, x: Tensor) -> Tensor:  # [N, before, H, W] -> [N, after, H / stride, W / stride]
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.added:
            side = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.added - side))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks with 16, 32 and 64 channels; 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = stage(16, 16, blocks, 1)
        self.layer2 = stage(16, 32, blocks, 2)
        self.layer3 = stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))

    def writers(self) -> list[nn.Module]:
        """The layers that write the residual stream."""
        blocks = [block for stage in (self.layer1, self.layer2, self.layer3) for block in stage]
        return [self.conv1, *(block.get_submodule("conv2") for block in blocks)]


def stage(before: int, after: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [Block(after, after, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(before, after, stride), *rest)


def resnet20() -> ResNet:
    return ResNet(3)


def resnet32() -> ResNet:
    return ResNet(5)


def resnet44() -> ResNet:
    return ResNet(7)


def resnet56() -> ResNet:
    return ResNet(9)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise, project by 1x1 linearly; added to the input where shapes agree."""

    def __init__(self, before: int, after: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = before * expand
        layers: list[nn.Module] = [] if expand == 1 else _convolved(before, wide, 1)
        layers += _convolved(wide, wide, 3, stride=stride, groups=wide)
        layers += [nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after)]
        self.layers = nn.Sequential(*layers)
        self.added = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.added else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv:1801.04381, table 2) for 32 x 32 images: the first two strides are 1.

    Args:
        width: Factor on the channels of every layer but the last, rounded to multiples of 8.
    """

    # expansion, channels, blocks, stride of the first
    STAGES = (
        *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )

    def __init__(self, width: float, classes: int = 10) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        before = scaled(32)
        layers = _convolved(3, before, 3)
        for expand, channels, blocks, stride in self.STAGES:
            for i in range(blocks):
                layers.append(InvertedResidual(before, scaled(channels), stride if i == 0 else 1, expand))
                before = scaled(channels)
        self.features = nn.Sequential(*layers, *_convolved(before, 640, 1))
        self.linear = nn.Linear(640, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        return self.linear(self.features(x).mean(dim=(2, 3)))


def _convolved(before: int, after: int, k: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(before, after, k, stride, k // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(after), nn.ReLU6()]


def mobilenet_v2_half() -> MobileNetV2:
    return MobileNetV2(0.5)


class SqueezeExcite(nn.Module):
    """A gate per channel from the mean over the image: two 1x1 convolutions and a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 4)
        self.fc1, self.fc2 = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def gate(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, 1, 1]
        return F.hardsigmoid(self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class GatedBlock(nn.Module):
    """Expand, depthwise, squeeze and excite, project; added to the input where shapes allow."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        wide = 4 * before
        self.expand, self.norm1 = nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depth, self.norm2 = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.se = SqueezeExcite(wide)
        self.project, self.norm3 = nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after)
        self.added = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm1(self.expand(x)))
        y = self.norm3(self.project(self.se(F.hardswish(self.norm2(self.depth(y))))))
        return x + y if self.added else y


class SENet(nn.Module):
    """Eight such blocks for 32 x 32 images, in the manner of MobileNetV3 (arXiv:1905.02244) and of our own size.

    Args:
        width: Factor on all channels, rounded to multiples of 8.
    """

    # channels, blocks, stride of the first
    STAGES = ((16, 1, 1), (24, 2, 2), (40, 3, 2), (80, 2, 1))

    def __init__(self, width: float = 1.0, classes: int = 10) -> None:
        super().__init__()
        sizes = [
            (max(8, round(channels * width / 8) * 8), blocks, stride) for channels, blocks, stride in self.STAGES
        ]
        before = sizes[0][0]
        self.stem, self.norm = nn.Conv2d(3, before, 3, 1, 1, bias=False), nn.BatchNorm2d(before)
        blocks: list[nn.Module] = []
        for channels, count, stride in sizes:
            for i in range(count):
                blocks.append(GatedBlock(before, channels, stride if i == 0 else 1))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        return self.head(self.blocks(F.hardswish(self.norm(self.stem(x)))).mean((2, 3)))


class VGG(nn.Module):
    """Four pairs of 3x3 convolutions with batch norm, each pair at half the resolution of the one before.

    Ours, after Simonyan and Zisserman (arXiv:1409.1556): 32, 64, 128 and 256 channels, an average, a linear layer.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for pair, channels in enumerate((32, 64, 128, 256)):
            layers += [nn.MaxPool2d(2)] if pair else []
            for _ in range(2):
                layers += [nn.Conv2d(before, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                before = channels
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        return self.linear(self.features(x).mean(dim=(2, 3)))


class EncoderBlock(nn.Module):
    """Self-attention and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # [N, tokens, width] -> the same
        x = x + self._attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al., arXiv:2010.11929) for 32 x 32 images, of our own size.

    64 patches of 4 x 4 pixels, 128 channels, 6 blocks of 4 heads, an average instead of the class token.
    """

    def __init__(self, width: int = 128, blocks: int = 6, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, 2 * width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, 32, 32] -> [N, classes]
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.linear(self.norm(self.blocks(x)).mean(dim=1))


PUBLISHED = {"resnet20": resnet20, "resnet32": resnet32, "resnet44": resnet44, "resnet56": resnet56}
NETS: dict[str, Callable[[], nn.Module]] = {
    **PUBLISHED,
    "mobilenet_v2_half": mobilenet_v2_half,
    "se_net": SENet,
    "vgg_bn": VGG,
    "vit": ViT,
}
