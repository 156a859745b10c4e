"""Root-mean-square normalisation, and what leaves a norm on its way into matrix products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _RMSNorm(torch.autograd.Function):
    """PyTorch has no fused CPU kernel for this norm; with its gradient written out it takes a third of the time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse
        product = grad * normed
        grad_weight = product.flatten(0, -2).sum(0)
        along = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)  # the part of the gradient along x itself
        return (grad * weight).sub_(normed.mul_(along)).mul_(inverse), grad_weight, None


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467), computed in fp32, returned in x's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # an autograd function costs more than a decoded token's norm itself
            return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)
        return _RMSNorm.apply(x.float(), self.weight.float(), self.eps).to(x.dtype)


def for_matmul(x: Tensor) -> Tensor:
    """Cast once what autocast would cast again for each product that shares it (queries, keys, values; gate, up)."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
