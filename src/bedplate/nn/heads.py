"""Output heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100  # targets of this value count neither in the loss nor in its weight


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head without ever holding all logits.

    A chunk of rows is taken through logits, loss and gradient while it is warm in the processor's cache; only the
    gradients of the hidden states and the weight are kept. Same three matrix products as the plain way, a fraction of
    its memory.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, grad_enabled: bool) -> Tensor:
        needs_grad = grad_enabled and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        low = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            low = torch.get_autocast_dtype(hidden.device.type)
        weight_low = weight.to(low)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                h, t = hidden[part].to(low), targets[part]
                logits = (h @ weight_low.t()).float()
                kept = t != IGNORE
                index = t.clamp(min=0)[:, None]
                top = logits.amax(1, keepdim=True)
                right = logits.gather(1, index)
                logits = logits.sub_(top).exp_()
                norm = logits.sum(1, keepdim=True)
                total += ((norm.log() + top - right).squeeze(1) * kept).sum()
                if grad_hidden is None or grad_weight is None:
                    continue
                # d nll / d logits = softmax - one_hot, zero on ignored rows
                logits.mul_(kept[:, None] / norm).scatter_add_(1, index, -kept[:, None].float())
                grad_logits = logits.to(low)
                grad_hidden[part] = grad_logits @ weight_low
                if low == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), h)
                else:
                    grad_weight += grad_logits.t() @ h
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (grad,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad, None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int = 512) -> tuple[Tensor, Tensor]:
    """(sum of negative log-likelihoods in nats, number of counted targets), both scalars.

    Args:
        hidden: `(..., D)` final hidden states.
        weight: `(V, D)` of the head.
        targets: `(...)` int64; `IGNORE` marks those that do not count.
        rows: rows whose logits are held at one time.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    total = _LinearCrossEntropy.apply(hidden, weight, targets, rows, torch.is_grad_enabled())
    return total, (targets != IGNORE).sum()


def cross_entropy_by_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target `(...)`, 0 where ignored, for logits `(..., V)`."""
    losses = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)
