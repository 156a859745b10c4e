"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bedplate.train.exchange import Exchange, local, tensor_dim

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STATE = ("momentum_buffer",)  # what it keeps of each parameter, under the names of `torch.optim.Muon`


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push the singular values of each matrix of `(L, M, N)` towards 1 by a quintic Newton-Schulz iteration.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The result's singular values
    lie in about 0.7 .. 1.2, which trains as well as exactly 1.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices: the update is the orthogonalised Nesterov momentum of the gradient.

    Filters (D, C, H, W) are matrices of D rows, as in the source above.

    Equal to `torch.optim.Muon` with its defaults, and different in two ways that matter on real machines: matrices of
    one shape are orthogonalised in one batched product, and in fp32 where the hardware has no bf16 multiplication
    (`torch.optim.Muon` always uses bf16, which such a CPU emulates some hundred times slower).

    Args:
        lr: step size; scaled by sqrt(max(1, rows / columns)) for each matrix.
        dtype: dtype of the orthogonalisation.
        exchange: where ranks share the parameters or the work. Each matrix is then orthogonalised whole by one rank,
            which is exact, and less work than Newton-Schulz on shards.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.bfloat16,
        exchange: Exchange | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype, self._exchange = dtype, exchange
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() < 2:
                    raise ValueError(f"Muon takes matrices and filters, got a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[object, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape, tensor_dim(p)].append(p)
            for params in by_shape.values():
                self._update(params, **{k: group[k] for k in ("lr", "momentum", "weight_decay")})

    def _update(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        grads = [local(p.grad) for p in params if p.grad is not None]
        buffers = []
        for p in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(local(state["momentum_buffer"]))
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = [part.to(self._dtype) for part in torch._foreach_lerp(grads, buffers, momentum)]
        if self._exchange is None:
            updates = list(_orthogonalized(torch.stack(nesterov)).unbind())
        else:
            own = _orthogonalized(self._exchange.gather(nesterov, params[0]))
            updates = self._exchange.scatter(own, len(params), params[0])
        rows, columns = params[0].shape[0], params[0].shape[1:].numel()
        parts = [local(p) for p in params]
        torch._foreach_mul_(parts, 1 - lr * weight_decay)
        updates = [update.to(parts[0].dtype) for update in updates]
        torch._foreach_add_(parts, updates, alpha=-lr * max(1.0, rows / columns) ** 0.5)


def _orthogonalized(stacked: Tensor) -> Tensor:
    """`(L, M, ...)` with each `(M, ...)` as a matrix of M rows."""
    return orthogonalize(stacked.flatten(2)).view(stacked.shape)
