"""What is put around a module before it is trained. The order of the lines is the order of the wrappers.

    tensor parallelism -> activation checkpointing -> compilation -> FSDP2, block by block, then the rest of the module

Models know nothing of it: a module's matrices become DTensors, and its blocks run as they stand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from bedplate.nn.heads import LinearCrossEntropy
from bedplate.recipe.schema import LoopRecipe, ParallelRecipe
from bedplate.tasks import Batch
from bedplate.train.exchange import Exchange, local, tensor_dim
from bedplate.train.hardware import Hardware
from bedplate.train.ranks import Ranks

Weights = Iterable[tuple[str, Tensor]]


class Root(nn.Module):
    """Runs any work on a module inside one forward pass, where DDP and FSDP2 hook in, whatever methods it calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.around: Callable[[], AbstractContextManager[object]] = nullcontext

    def forward(self, work: Callable[..., Any], *args: Any) -> Any:
        with self.around():
            return work(*args)


class Parallel:
    """A module as this run's ranks share it.

    `wrap` changes the module in place; what uses its weights then goes through `run`.
    """

    def __init__(self, ranks: Ranks, recipe: ParallelRecipe, loop: LoopRecipe, hardware: Hardware) -> None:
        self.ranks, self.loop, self.hardware = ranks, loop, hardware
        self.shards, self.tensor = recipe.shard, recipe.tensor
        self.replicas = ranks.size // (recipe.shard * recipe.tensor)
        self.is_sharded = recipe.shard * recipe.tensor > 1
        self._root: nn.Module | None = None
        self._batch: Callable[[Batch], Batch] = dict

    @property
    def exchange(self) -> Exchange | None:
        """How Muon gets whole matrices."""
        if self.ranks.size == 1:
            return None
        return Exchange(self.ranks.rank, self.replicas, self.shards, self.tensor)

    def wrap(self, module: nn.Module, weights: Weights | None = None) -> None:
        """Apply what the recipe asks for; parameter names stay as they are.

        Args:
            weights: of a module that was built on the meta device, by name in the order of `named_parameters`. Each
                block is filled and sharded before the next: no rank ever holds the whole model.
        """
        if self.is_sharded:
            self._shard(module, weights)
            return
        wrap(module.to(self.hardware.device), self.loop)
        if self.ranks.size > 1:
            self._root = DistributedDataParallel(Root(module), gradient_as_bucket_view=True)

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do work that uses the weights without learning from it; all ranks must do the same."""
        if not self.is_sharded:
            return work(*args)
        assert self._root is not None
        try:
            return self._root(work, *args)
        finally:
            self._root.reshard()  # type: ignore[operator]  # what no backward pass does here; the next step's weights would not be gathered

    def learn(self, loss: Callable[..., Any], batch: Batch, last: bool) -> Any:
        """The task's loss, whose gradients ranks share after the `last` micro-batch of a step."""
        if self._root is None:
            return loss(batch)
        waiting: AbstractContextManager[object] = nullcontext()
        if isinstance(self._root, DistributedDataParallel) and not last:
            waiting = self._root.no_sync()
        with waiting:
            return self._root(loss, self._batch(batch))

    def _shard(self, module: nn.Module, weights: Weights | None) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        from bedplate.train.tensor_parallel import as_local, own_targets, split_block, split_ends

        grid = (self.replicas, self.shards, self.tensor)
        mesh = init_device_mesh(self.hardware.device.type, grid, mesh_dim_names=("replicate", "shard", "tensor"))
        dp = mesh["replicate", "shard"] if self.replicas > 1 else mesh["shard"]
        low = self.hardware.dtype if self.hardware.dtype != torch.float32 else None
        # Blocks gather their weights in the dtype of the products. What is left in the root (embeddings, head, final
        # norm) stays fp32, so that the residual stream is, as on one GPU; autocast casts where it would there.
        in_blocks = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        in_root = MixedPrecisionPolicy(cast_forward_inputs=False)
        pieces = blocks(module)
        filling = _fill(module, weights, pieces, self.hardware.device) if weights is not None else iter(pieces)
        if weights is None:
            module.to(self.hardware.device)
        for block in filling:
            if self.tensor > 1:
                split_block(block, mesh["tensor"])
            wrap_block(block, self.loop)
            fully_shard(block, mesh=dp, mp_policy=in_blocks)
        wrap_losses(module, self.loop)
        root = Root(module)
        if self.tensor > 1:
            root.around = partial(as_local, split_ends(module, mesh["tensor"]))
            self._batch = partial(own_targets, mesh["tensor"])
        fully_shard(root, mesh=dp, mp_policy=in_root)
        self._root = root

    # What training needs to know of the shards

    def gradient_norm(self, parameters: list[Tensor]) -> Tensor:
        """The norm of all gradients, each element counted once, wherever it lies."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if not self.is_sharded:
            return torch.nn.utils.get_total_norm(grads)
        norms = torch._foreach_norm([local(grad) for grad in grads])
        copies = [self.ranks.size // self.shards // (1 if tensor_dim(g) is None else self.tensor) for g in grads]
        squares = torch.stack([norm.square() / n for norm, n in zip(norms, copies, strict=True)])
        return self.ranks.sum(squares.sum()).sqrt()

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """Put whole weights into the module on the main rank for a while, on the CPU, so that they can be written."""
        if not self.is_sharded:
            yield
            return
        places = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if p is not None]
        whole: dict[int, nn.Parameter] = {}
        for _, _, parameter in places:
            if id(parameter) not in whole:  # tied weights stay tied
                tensor = _gathered(parameter.detach())
                whole[id(parameter)] = nn.Parameter(tensor.cpu() if self.ranks.is_main else tensor[:0])
        try:
            for owner, name, parameter in places:
                owner._parameters[name] = whole[id(parameter)]
            yield
        finally:
            for owner, name, parameter in places:
                owner._parameters[name] = parameter


def _gathered(tensor: Any) -> Tensor:
    """All of a DTensor on every rank. Shards come together before tensor ranks, in the reverse order of the split."""
    from torch.distributed.tensor import Replicate

    placements = list(tensor.placements)
    for dim in range(len(placements)):
        placements[dim] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.to_local()


def wrap(module: nn.Module, recipe: LoopRecipe) -> None:
    """What is put around a module's blocks and losses on a process of its own."""
    for block in blocks(module):
        wrap_block(block, recipe)
    wrap_losses(module, recipe)


def wrap_block(block: nn.Module, recipe: LoopRecipe) -> None:
    if recipe.activation_checkpointing:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if recipe.compile:
        # All blocks share one function. A hybrid objective, windows and held-out passes make more of it than the eight
        # that PyTorch allows before it gives up, and then runs uncompiled.
        torch._dynamo.config.recompile_limit = 64
        block.compile()


def wrap_losses(module: nn.Module, recipe: LoopRecipe) -> None:
    for loss in module.modules():
        if recipe.compile and isinstance(loss, LinearCrossEntropy):
            loss.compile()


def blocks(module: nn.Module) -> list[nn.Module]:
    """All blocks of all trunks inside a module."""
    return [block for name, child in module.named_modules() if name.endswith("blocks") for block in child.children()]


def _fill(module: nn.Module, weights: Weights, pieces: list[nn.Module], device: torch.device) -> Iterator[nn.Module]:
    """Give a module on the meta device its weights; each block is yielded as soon as it is full."""
    empty = deque(pieces)
    for name, value in weights:
        path, _, leaf = name.rpartition(".")
        is_trained = module.get_parameter(name).requires_grad
        module.get_submodule(path).register_parameter(leaf, nn.Parameter(value.to(device), is_trained))
        while empty and not any(p.is_meta for p in empty[0].parameters()):
            yield empty.popleft()
    if hasattr(module, "tie_weights"):
        module.tie_weights()  # type: ignore[operator]
    assert not any(p.is_meta for p in module.parameters()), "every parameter has got its weights"
