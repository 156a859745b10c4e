"""LoRA: frozen matrices, and beside some of them a trained product of low rank (arXiv 2106.09685)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class LoRALinear(nn.Linear):
    """`x W^T + b + scale * dropout(x) A^T B^T`, which is `(W + scale * B A)` without dropout.

    It holds the weight and bias of the layer that it stands for, under their names. Until B is trained it is zero, and
    the layer computes what it did before.

    Shapes: `lora_A (rank, in)`, `lora_B (out, rank)`, in the dtype and on the device of the weight.

    Args:
        lora_A: shared with another layer of the same input; a fresh one by default, Kaiming-uniform.
        generator: what a fresh one is drawn from.
    """

    def __init__(
        self,
        linear: nn.Linear,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        *,
        lora_A: nn.Parameter | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate and fill a weight that is not needed
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout = scale, dropout
        if lora_A is None:
            # On the CPU, so that the same seed gives the same weights on any device.
            drawn = nn.init.kaiming_uniform_(torch.empty(rank, self.in_features), math.sqrt(5), generator=generator)
            lora_A = nn.Parameter(drawn.to(linear.weight))
        assert lora_A.shape == (rank, self.in_features)
        self.lora_A = lora_A
        self.lora_B = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        seen = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(seen, self.lora_A) * self.scale, self.lora_B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One matrix that computes the same; the sum is made in fp32."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        change = self.lora_B.float() @ self.lora_A.float() * self.scale
        linear.weight = nn.Parameter((self.weight.float() + change).to(self.weight.dtype))
        linear.bias = self.bias
        return linear

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_A)}, scale={self.scale:g}"


def scale_of(rank: int, alpha: float, *, rank_stabilized: bool = False) -> float:
    """What B A is multiplied with: alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rank_stabilized else rank)


def add_adapter(
    module: nn.Module, groups: Iterable[Sequence[str]], rank: int, scale: float, dropout: float = 0.0, seed: int = 0
) -> None:
    """Put an adapter on linear layers of a module, in place.

    Args:
        groups: names of layers. Those of a group have the same input and share one A, as parts of a fused matrix do.
        seed: decides the fresh weights, whatever the device.
    """
    generator = torch.Generator().manual_seed(seed)
    for names in groups:
        shared: nn.Parameter | None = None
        for name in names:
            linear = module.get_submodule(name)
            assert type(linear) is nn.Linear, f"{name} is no plain linear layer"
            layer = LoRALinear(linear, rank, scale, dropout, lora_A=shared, generator=generator)
            shared = layer.lora_A
            _exchange(module, name, layer)


def adapted_layers(module: nn.Module) -> dict[str, LoRALinear]:
    """The layers with an adapter, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoRALinear)}


def train_adapter_only(module: nn.Module, besides: Sequence[str] = ()) -> None:
    """Freeze all but the adapter and the parameters whose names begin with one of `besides`."""
    trained = {id(p) for layer in adapted_layers(module).values() for p in (layer.lora_A, layer.lora_B)}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(id(parameter) in trained or name.startswith(tuple(besides)))


def sharing_copy(module: M) -> M:
    """A copy whose layers can be exchanged without changing the original; the weights themselves are shared."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


def merged_copy(module: M) -> M:
    """A copy in which each adapter is added to its matrix; all other weights are shared."""
    copied = sharing_copy(module)
    for name, layer in adapted_layers(copied).items():
        _exchange(copied, name, layer.merged())
    return copied


def _exchange(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
