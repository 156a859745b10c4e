"""Output heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
CPU_ROWS, GPU_ROWS = 512, 4096  # whose logits are held at one time; few on the CPU, for its caches
IGNORE = -100  # targets of this value count neither in the loss nor in its weight


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of a linear head without ever holding all logits.

    A chunk of rows is taken through logits, loss and gradient while it is warm in the processor's cache; only the
    gradients of the hidden states, the weight and the bias are kept. Same three matrix products as the plain way, a
    fraction of its memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        grad_enabled: bool,
        kernel: Kernel,
    ) -> Tensor:
        needs_grad = grad_enabled and any(ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        # A frozen head, as beside an adapter, needs none.
        grad_weight, grad_bias = (
            torch.zeros_like(x, dtype=torch.float32) if needs_grad and x is not None and wanted else None
            for x, wanted in zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        )
        low = hidden.dtype
        if torch.is_autocast_enabled(hidden.device.type):
            low = torch.get_autocast_dtype(hidden.device.type)
        weight_low, bias_low = weight.to(low), None if bias is None else bias.to(low)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # One buffer for all chunks: fresh memory costs the CPU more than what is computed in it.
        buffer = hidden.new_empty(min(rows, len(hidden)), len(weight), dtype=low)
        scores = buffer if low == torch.float32 else torch.empty_like(buffer, dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                h = hidden[part].to(low)
                if bias_low is None:
                    logits = torch.mm(h, weight_low.t(), out=buffer[: len(h)])
                else:
                    logits = torch.addmm(bias_low, h, weight_low.t(), out=buffer[: len(h)])
                nats, grad_logits = kernel(logits, targets[part], scores[: len(h)])
                total += nats
                if grad_hidden is not None:
                    grad_hidden[part] = grad_logits @ weight_low
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0, dtype=torch.float32)
                if grad_weight is None:
                    continue
                if low == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), h)
                else:
                    grad_weight += grad_logits.t() @ h
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        grad_hidden, *others = ctx.saved_tensors
        scaled = (None if other is None else other * grad for other in others)
        return grad_hidden * grad.to(grad_hidden.dtype), *scaled, None, None, None, None


def in_buffers(logits: Tensor, targets: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """(summed negative log-likelihood in nats, its gradient) of logits `(R, V)`, which are overwritten with it.

    The gradient is softmax - one_hot, and zero on ignored rows. `scores (R, V)` fp32 is room to compute in.
    """
    kept, index = targets != IGNORE, targets.clamp(min=0)[:, None]
    scores.copy_(logits)
    top = scores.amax(1, keepdim=True)
    right = scores.gather(1, index)
    norm = scores.sub_(top).exp_().sum(1, keepdim=True)
    nats = ((norm.log() + top - right).squeeze(1) * kept).sum()
    scores.mul_(kept[:, None] / norm).scatter_add_(1, index, -kept[:, None].float())
    return nats, logits.copy_(scores)


def fusible(logits: Tensor, targets: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The same without writing in place: what a compiler makes two passes over the logits of."""
    kept, index = (targets != IGNORE)[:, None], targets.clamp(min=0)[:, None]
    x = logits.float()
    top = x.amax(1, keepdim=True)
    norm = (x - top).exp().sum(1, keepdim=True)
    nats = ((norm.log() + top - x.gather(1, index)) * kept).sum()
    right = torch.arange(x.shape[1], device=x.device) == index
    return nats, (((x - top).exp() / norm - right.float()) * kept).to(logits.dtype)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: int | None = None,
    kernel: Kernel = in_buffers,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum of negative log-likelihoods in nats, number of counted targets), both scalars.

    Args:
        hidden: `(..., D)` final hidden states.
        weight: `(V, D)` of the head.
        targets: `(...)` int64; `IGNORE` marks those that do not count.
        rows: rows whose logits are held at one time (default: `CPU_ROWS` or `GPU_ROWS`).
        kernel: `in_buffers`, or `fusible` compiled.
        bias: `(V,)` of the head.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if hidden.device.type == "cpu" and not (kept := targets != IGNORE).all():
        # Where responses alone are learnt, most logits are for nothing. Elsewhere to count them would stall the device.
        hidden, targets = hidden[kept], targets[kept]
    rows = rows or (CPU_ROWS if hidden.device.type == "cpu" else GPU_ROWS)
    total = _LinearCrossEntropy.apply(hidden, weight, bias, targets, rows, torch.is_grad_enabled(), kernel)
    return total, (targets != IGNORE).sum()


class LinearCrossEntropy(nn.Module):
    """`linear_cross_entropy` as a module without weights, which can be compiled as blocks are."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Kernel = in_buffers

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Fuse what is done to a chunk's logits; the loop over chunks and its products stay as they are."""
        self.kernel = torch.compile(fusible, *args, **kwargs)

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(hidden, weight, targets, kernel=self.kernel, bias=bias)


def cross_entropy_by_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target `(...)`, 0 where ignored, for logits `(..., V)`."""
    losses = F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)
