"""EfficientNet-Lite as a vision tower, which a laptop runs in milliseconds.

transformers' `VipLlavaModel` drops the first token of a tower's hidden state, a class token in
other towers and zeros here; the other tokens are the image's. A token concatenates features of
four depths (strides 8, 16, 32 and the head), each pooled to one grid and normalized on its own.
The last token summarizes the image.

This module does not know regions, prompts or language. Architecture: EfficientNet-Lite (Tan and
Le, 2019; the "lite" variants of 2020 have no squeeze-and-excitation, ReLU6, and a stem and head of
constant width).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vip_llava.models.vision_towers import VisionTower, register_vision_tower

# Input statistics of the published weights: (x - 0.498) / 0.502 for pixels from 0 to 1.
PIXEL_MEAN = 127.0 / 255.0
PIXEL_STD = 128.0 / 255.0

_BATCH_NORM_EPS = 1e-3


class EfficientNetLiteConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Configuration of an EfficientNet-Lite; the defaults are Lite2.

    Args:
        stages: (blocks, kernel, stride, expansion, channels) of each stage.
        tap_blocks: blocks whose outputs become features, beside the head's.
        grid: side of the token grid.
        folded: whether batch norms are merged into the convolutions.
    """

    model_type = "vip_llava_efficientnet_lite"

    def __init__(
        self,
        stages: list[list[int]] | None = None,
        stem_channels: int = 32,
        head_channels: int = 1280,
        tap_blocks: list[int] | None = None,
        grid: int = 8,
        image_size: int = 256,
        folded: bool = False,
        **kwargs: Any,
    ) -> None:
        self.stages = stages or [
            [1, 3, 1, 1, 16],
            [3, 3, 2, 6, 24],
            [3, 5, 2, 6, 48],
            [4, 3, 2, 6, 88],
            [4, 5, 1, 6, 120],
            [5, 5, 2, 6, 208],
            [1, 3, 1, 6, 352],
        ]
        self.stem_channels = stem_channels
        self.head_channels = head_channels
        self.tap_blocks = tap_blocks or [6, 14, 20]
        self.grid = grid
        self.image_size = image_size
        self.folded = folded
        channels = [c for n, _, _, _, c in self.stages for _ in range(n)]
        self.hidden_size = sum(channels[b] for b in self.tap_blocks) + head_channels
        super().__init__(**{k: v for k, v in kwargs.items() if k != "hidden_size"})

    @property
    def tokens_per_view(self) -> int:
        """Tokens of an image without the first one: the grid and the summary."""
        return self.grid * self.grid + 1


class SameConv(nn.Module):
    """Convolution with TensorFlow's "same" padding, and batch norm with frozen statistics."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        *,
        folded: bool,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=folded)
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if kernel > 1:
            # An odd padding has its extra pixel at the right and bottom.
            pads: list[int] = []
            for length in (x.shape[-1], x.shape[-2]):
                total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
                pads += [total // 2, total - total // 2]
            x = F.pad(x, pads)
        y: Tensor = self.norm(self.conv(x))
        return y

    def fold(self) -> None:
        """Merge the batch norm into the convolution, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project, and a shortcut if shapes are equal."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, *, folded: bool
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = SameConv(inputs, wide, 1, folded=folded) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide, folded=folded)
        self.project = SameConv(wide, outputs, 1, folded=folded)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.shortcut else y


class EfficientNetLiteTower(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Images [N, 3, S, S] -> hidden states [N, 1 + grid*grid + 1, hidden_size]."""

    config: EfficientNetLiteConfig
    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "vision_tower"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        folded = config.folded
        self.stem = SameConv(3, config.stem_channels, 3, 2, folded=folded)
        blocks, channels = [], config.stem_channels
        for count, kernel, stride, expansion, width in config.stages:
            for i in range(count):
                first_stride = stride if i == 0 else 1
                blocks.append(
                    Block(channels, width, kernel, first_stride, expansion, folded=folded)
                )
                channels = width
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(channels, config.head_channels, 1, folded=folded)
        self._no_split_modules = ["Block"]  # for device maps
        self.post_init()  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> EfficientNetLiteTower:
        """Set the mode of all modules but batch norms, whose statistics stay the published ones."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Encode images [N, 3, S, S]; other arguments of transformers' towers are ignored."""
        x = F.relu6(self.stem(pixel_values))
        taps: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.config.tap_blocks:
                taps.append(x)
        taps.append(F.relu6(self.head(x)))
        tokens = self._tokens(taps)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, hidden_states=(tokens,))

    def _tokens(self, taps: list[Tensor]) -> Tensor:
        grid = self.config.grid
        cells, summary = [], []
        for tap in taps:
            pooled = F.adaptive_avg_pool2d(tap, grid).flatten(2).transpose(1, 2)
            cells.append(F.layer_norm(pooled, pooled.shape[-1:]))
            mean = tap.mean((2, 3)).unsqueeze(1)
            summary.append(F.layer_norm(mean, mean.shape[-1:]))
        rows = torch.cat([torch.cat(cells, -1), torch.cat(summary, -1)], 1)
        # VipLlavaModel drops the first token.
        return F.pad(rows, (0, 0, 1, 0))

    def fold(self) -> EfficientNetLiteTower:
        """Merge every batch norm into its convolution, for inference; return the tower."""
        for module in self.modules():
            if isinstance(module, SameConv):
                module.fold()
        self.config.folded = True
        return self


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteTower, exist_ok=True)
register_vision_tower(
    VisionTower(
        model_type=EfficientNetLiteConfig.model_type,
        prefix_tokens=1,
        layers=None,
        image_mean=(PIXEL_MEAN,) * 3,
        image_std=(PIXEL_STD,) * 3,
        image_tokens=lambda config, image_size: int(config.get("grid", 8)) ** 2 + 1,
    )
)
