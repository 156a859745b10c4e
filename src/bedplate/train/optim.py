"""Optimizers: which rule moves which parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bedplate.errors import InputError
from bedplate.recipe.schema import OptimizerRecipe
from bedplate.train.exchange import Exchange, local
from bedplate.train.muon import STATE as MUON_STATE
from bedplate.train.muon import Muon


def make_optimizers(
    module: nn.Module, recipe: OptimizerRecipe, matmul_dtype: torch.dtype, exchange: Exchange | None = None
) -> list[Optimizer]:
    """The run's optimizers; together they cover every parameter exactly once.

    Muon moves the matrices inside the blocks and the filters of stems. Embeddings, heads, norms and biases follow
    AdamW: their rows are looked up rather than multiplied, so an orthogonal update has no meaning for them. Vectors are
    not decayed.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    use_muon = recipe.name == "muon"
    matrices = [p for name, p in named if use_muon and _is_orthogonalised(name, p)]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (recipe.beta1, recipe.beta2)
    optimizers: list[Optimizer] = []
    if groups:  # of an adapter on a language model, Muon takes all
        optimizers.append(torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True))
    if matrices:
        muon = Muon(matrices, recipe.muon_learning_rate, recipe.momentum, recipe.weight_decay, matmul_dtype, exchange)
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    covered = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(covered) == len({id(p) for p in covered}) == len(named), "every parameter needs exactly one optimizer"
    return optimizers


def _is_orthogonalised(name: str, p: Tensor) -> bool:
    """Whether Muon moves a parameter: (D, C, H, W) of a stem's layer counts as a matrix of D rows."""
    path = f".{name}"
    return (".blocks." in path and p.dim() == 2) or (".embed.layers." in path and p.dim() == 4)


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


@torch.no_grad()
def finish_gradients(
    parameters: list[Tensor], weight: Tensor, clip_norm: float | None, norm: Tensor | None = None
) -> Tensor:
    """Divide summed gradients by `weight` and clip their global norm, in one pass; return the norm before clipping.

    `norm` is that of the sums, where gradients are sharded over ranks.
    """
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    scale = 1 / torch.where(weight > 0, weight, 1)  # without weight the sums are zeros
    norm = (torch.nn.utils.get_total_norm(grads) if norm is None else norm) * scale
    if clip_norm is not None:
        scale = scale * (clip_norm / (norm + 1e-6)).clamp(max=1)
    torch._foreach_mul_(grads, scale)
    return norm


def state_tensors(optimizers: list[Optimizer], module: nn.Module) -> dict[str, Tensor]:
    """All optimizer state as {"parameter name/state name": tensor}."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{names[id(p)]}/{key}": torch.as_tensor(value)
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state_tensors(optimizers: list[Optimizer], module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`; tensors are moved to their parameter's device.

    Raises:
        InputError: a parameter was moved by the other rule, as the filters of stems were by AdamW once.
    """
    parameters = dict(module.named_parameters())
    owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, _, state = key.rpartition("/")
        parameter = parameters[name]
        if isinstance(owner[id(parameter)], Muon) != (state in MUON_STATE):
            raise InputError(
                f"the checkpoint is of a version that moved {name} by another optimizer; finish this run with the "
                "version that began it, or begin anew with another out"
            )
        device = parameter.device if value.dim() or owner[id(parameter)].defaults.get("fused") else value.device
        owner[id(parameter)].state[parameter][state] = value.to(device)
