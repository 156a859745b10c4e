"""Tensor parallelism: every rank of a group multiplies with its share of the heads and of the MLP's width.

Megatron's way (arXiv 1909.08053): the first matrices of attention and MLP are split by columns, the last by rows, so
that a block needs one sum over the ranks for each of the two. Norms and embeddings are whole on every rank, as
DTensors too: the optimizer, clipping and checkpoints then see one kind of tensor. The loss is shared by tokens: each
rank takes its part of a row through the final norm, the head and the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from bedplate.errors import InputError
from bedplate.models.gpt import GPT
from bedplate.nn.block import Block
from bedplate.tasks import Batch

Spot = tuple[nn.Module, str, Placement]  # a module, the name of its parameter, what its local gradient is


def split_block(block: nn.Module, mesh: DeviceMesh) -> None:
    """Split one block of a trunk over the ranks of `mesh`.

    Raises:
        InputError: heads or the MLP's width cannot be shared equally.
    """
    assert isinstance(block, Block)
    attn, mlp, ranks = block.attn, block.mlp, mesh.size()
    heads = {name: getattr(attn, f"{letter}_proj").out_features // attn.head_dim for name, letter in HEADS.items()}
    for name, size in {**heads, "intermediate_size": mlp.up_proj.out_features}.items():
        if size % ranks:
            raise InputError(f"model.{name}={size} is not a multiple of parallel.tensor={ranks}; change one of them")
    # One conversion of the input for all products that share it: the way back then has one sum, not one each.
    enter_attn = PrepareModuleInput(input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None))
    enter_mlp = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
    plan: dict[str, Any] = {"attn": enter_attn, "mlp": enter_mlp}
    plan |= {f"attn.{name}": ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    plan |= {f"mlp.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj") if getattr(mlp, name) is not None}
    plan |= {"attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    parallelize_module(block, mesh, plan)
    for norm in (block.attn_norm, block.mlp_norm):
        _localize(norm, mesh, Replicate())  # every rank sees the same tokens
    for norm in (attn.q_norm, attn.k_norm):
        _localize(norm, mesh, Partial())  # every rank sees its own heads


HEADS = {"num_attention_heads": "q", "num_key_value_heads": "k"}


def split_ends(module: nn.Module, mesh: DeviceMesh) -> list[Spot]:
    """What stands before and behind the blocks: whole on every rank, the loss shared by tokens.

    Returns:
        the parameters that `as_local` has to make plain tensors while the module runs.
    """
    assert isinstance(module, GPT), "other models have other ends"
    tied = module.head.weight is module.embed.weight
    _localize(module.trunk.norm, mesh, Partial())
    module.trunk.norm.register_forward_pre_hook(partial(_own_tokens, mesh))
    ends = {"embed": Replicate(), "positions": Replicate(), "head": Partial()}
    there = {name: placement for name, placement in ends.items() if getattr(module, name) is not None}
    for name in there:
        _replicate(getattr(module, name), mesh)
    if tied:
        module.tie_weights()
    return [(getattr(module, name), "weight", placement) for name, placement in there.items()]


def own_targets(mesh: DeviceMesh, batch: Batch) -> Batch:
    """The batch with the targets of this rank's tokens, which are those that `_own_tokens` takes to the head."""
    return {**batch, "targets": batch["targets"].chunk(mesh.size(), dim=1)[mesh.get_local_rank()]}


@contextmanager
def as_local(spots: list[Spot]) -> Iterator[None]:
    """Have modules see their DTensor parameters as plain tensors for a while; gradients find their way back.

    An attribute of the instance hides the parameter of that name, which stays where FSDP2 and the optimizer look.
    """
    for module, name, placement in spots:
        parameter: Any = module._parameters[name]
        module.__dict__[name] = parameter.to_local(grad_placements=[placement])
    try:
        yield
    finally:
        for module, name, _ in spots:
            del module.__dict__[name]


def _replicate(module: nn.Module, mesh: DeviceMesh) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        whole = distribute_tensor(parameter.detach(), mesh, [Replicate()])
        module.register_parameter(name, nn.Parameter(whole))


def _localize(norm: nn.Module, mesh: DeviceMesh, placement: Placement) -> None:
    """A module whose weights are whole on every rank, and that works on plain tensors."""
    _replicate(norm, mesh)
    spots: list[Spot] = [(norm, name, placement) for name, _ in norm.named_parameters(recurse=False)]
    if not spots:
        return
    entered = []

    def enter(*_: object) -> None:
        entered.append(as_local(spots))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    norm.register_forward_pre_hook(enter)
    norm.register_forward_hook(leave, always_call=True)


def _own_tokens(mesh: DeviceMesh, norm: nn.Module, args: tuple[Tensor]) -> Tensor | None:
    """While training, this rank's part of the tokens of each row of `x (B, N, D)`; otherwise all of them."""
    if not norm.training:
        return None
    whole = DTensor.from_local(args[0], mesh, [Replicate()], run_check=False)
    return whole.redistribute(mesh, [Shard(1)]).to_local()
