"""Where a vision model looks: how much its summary of an image attends to each patch (arXiv 2104.14294, figure 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bedplate.errors import InputError
from bedplate.models.vit import VisionModel


@torch.no_grad()
def attention_maps(module: VisionModel, pixels: Tensor, layer: int = -1) -> Tensor:
    """The attention of each head of a layer to the patches, `(B, H, rows, columns)` fp32.

    It is the class token's, softmax(q K^T / sqrt(d)) at the patches: what a head gives to them and to the class token
    sums to 1. In a model that reads the mean of its patches (`pooling="mean"`) it is the mean over these as queries.

    Args:
        module: In evaluation mode.
        pixels: `(B, C, H, W)`, normalised, of the model's size.
        layer: From 0, or from the last one, -1.

    Raises:
        InputError: No such layer, or pixels that the model does not read.
    """
    layers = module.config.trunk.num_hidden_layers
    if not -layers <= layer < layers:
        raise InputError(f"layer={layer}: this model has {layers} layers; give 0 to {layers - 1}, or -{layers} to -1")
    with _Products() as products:
        module.hidden(pixels)
    queries, keys = products.found[layer]
    asking = queries[:, :, 1:] if module.config.pooling == "mean" else queries[:, :, :1]
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)  # heads may share them
    scores = asking.float() @ keys.float().transpose(-1, -2) / keys.shape[-1] ** 0.5
    return scores.softmax(-1).mean(2)[..., 1:].unflatten(-1, module.config.grid)


class _Products(TorchFunctionMode):
    """Keeps what enters each layer's fused attention, which itself never has the weights: `(B, H, N, d)` q and k."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.found.append((args[0], args[1]))
        return func(*args, **(kwargs or {}))
