"""Whole matrices from the shards of all ranks, each on one rank: for updates that need a matrix whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Exchange:
    """Shares matrices out to the owners among all ranks, and brings them back.

    Ranks form a grid of (replicas, shards, tensor ranks), the last fastest, as `parallel.py` lays them out. Of n
    matrices of one shape every rank owns about n / ranks. Each way is one all-to-all, which moves as many bytes as
    gathering the weights once; replicas share the work instead of each repeating it.
    """

    rank: int
    replicas: int
    shards: int
    tensor: int

    @property
    def size(self) -> int:
        return self.replicas * self.shards * self.tensor

    def gather(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """This rank's own matrices `(K, M, N)`, K maybe 0, of a list of which every rank gives its part of each.

        `like` is any of the parameters `(M, N)` that the parts are of, a DTensor where it is sharded.
        """
        replica = self._place(self.rank)[0]
        mine = len(self._owned(self.rank, len(parts)))
        own = parts[0].new_empty(mine, *like.shape)
        near = [other for other in range(self.size) if self._place(other)[0] == replica]  # a replica is enough
        outgoing = [[parts[i] for i in self._owned(other, len(parts))] if other in near else [] for other in self._all]
        views = {other: self._part(own, other, like) for other in near}
        received = _all_to_all(outgoing, [views[o].numel() if o in views else 0 for o in self._all], own)
        for other, view in views.items():
            view.copy_(received[other].view(view.shape))
        return own

    def scatter(self, own: Tensor, count: int, like: Tensor) -> list[Tensor]:
        """The inverse of `gather`: this rank's part of each of the `count` matrices."""
        outgoing = [[self._part(own, other, like)] for other in self._all]
        shape = self._part(own, self.rank, like).shape[1:]
        received = _all_to_all(outgoing, [len(self._owned(o, count)) * shape.numel() for o in self._all], own)
        owned = zip(received, self._all, strict=True)
        return [part for values, o in owned for part in values.view(len(self._owned(o, count)), *shape).unbind()]

    @property
    def _all(self) -> range:
        return range(self.size)

    def _owned(self, rank: int, count: int) -> range:
        """Which of `count` matrices a rank owns."""
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def _place(self, rank: int) -> tuple[int, int, int]:
        """(replica, shard, tensor rank) of a rank."""
        return rank // (self.shards * self.tensor), rank // self.tensor % self.shards, rank % self.tensor

    def _part(self, matrices: Tensor, rank: int, like: Tensor) -> Tensor:
        """What a rank holds of `matrices (K, M, N)`, a view: tensor ranks split first, then shards split the rows."""
        _, shard, tensor = self._place(rank)
        if (dim := tensor_dim(like)) is not None:
            matrices = _chunk(matrices, dim + 1, self.tensor, tensor)
        return _chunk(matrices, 1, self.shards, shard)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory. (To ask for DTensor's class would import it: a second.)"""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def tensor_dim(parameter: Tensor) -> int | None:
    """The dimension that tensor parallelism splits, if any; its dimension of the mesh is the last one."""
    if not hasattr(parameter, "placements"):
        return None
    sharded: Any = parameter
    names, placement = sharded.device_mesh.mesh_dim_names, sharded.placements[-1]
    return placement.dim if names[-1] == "tensor" and placement.is_shard() else None


def _chunk(x: Tensor, dim: int, count: int, index: int) -> Tensor:
    """Chunk `index` of `count`, as `torch.chunk` and DTensor cut: the last ones may be shorter or empty."""
    length = x.shape[dim]
    size = -(-length // count)
    start = min(index * size, length)
    return x.narrow(dim, start, min(size, length - start))


def _all_to_all(outgoing: list[list[Tensor]], incoming: list[int], like: Tensor) -> list[Tensor]:
    """Send each rank its tensors; return the flat values from each. As bytes, since gloo knows no bf16."""
    sizes = [sum(tensor.numel() for tensor in tensors) for tensors in outgoing]
    flat = [tensor.reshape(-1) for tensors in outgoing for tensor in tensors]
    sent = torch.cat(flat) if flat else like.new_empty(0)
    received = like.new_empty(sum(incoming))
    width = like.element_size()
    dist.all_to_all_single(
        received.view(torch.uint8),
        sent.view(torch.uint8),
        [width * size for size in incoming],
        [width * size for size in sizes],
    )
    return list(received.split(incoming))
