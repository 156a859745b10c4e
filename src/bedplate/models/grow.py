"""More blocks for a language model that has learnt: copies that begin as the identity.

Block expansion (LLaMA Pro, arXiv 2401.02415): behind a block stands a copy of it whose two outputs are zero. It leaves
the residual stream as it is, so the grown network computes what the smaller one did, and learns on from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.models.gpt import GPTConfig

Weights = Iterable[tuple[str, Tensor]]
OUTPUTS = ("attn.o_proj.", "mlp.down_proj.")
_IN_BLOCK = re.compile(r"(.*\bblocks\.)(\d+)\.(.*)")


def grown_config(config: GPTConfig, layers: int) -> GPTConfig:
    """The shape with `layers` blocks in all; a copy has the window of the block it stands behind.

    Raises:
        InputError: for an encoder, or where the network has as many blocks or more.
    """
    trunk, before = config.trunk, config.trunk.num_hidden_layers
    if config.is_encoder:
        raise InputError(f"grow_layers is for models that write, not for {config.family}; leave it out")
    if layers <= before:
        raise InputError(f"grow_layers={layers}: the base has {before} blocks; give more, or leave it out")
    windows = trunk.windows and tuple(trunk.windows[i] for i in sources(before, layers))
    return replace(config, trunk=replace(trunk, num_hidden_layers=layers, windows=windows))


def grown_weights(weights: Weights, before: int, layers: int) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network of `before` blocks for one of `layers`, in the order of `named_parameters`."""
    origin = sources(before, layers)
    for block, members in groupby(weights, key=_block):
        if block is None:
            yield from members
            continue
        own = list(members)
        first, *copies = [place for place, block_there in enumerate(origin) if block_there == block]
        for place in (first, *copies):
            for name, value in own:
                stem, _, rest = _IN_BLOCK.fullmatch(name).groups()  # type: ignore[union-attr]
                if place != first:
                    value = torch.zeros_like(value) if rest.startswith(OUTPUTS) else value.clone()
                yield f"{stem}{place}.{rest}", value


def sources(before: int, layers: int) -> list[int]:
    """Of each of `layers` blocks the one it is, or copies: the copies stand evenly among the blocks."""
    return [place * before // layers for place in range(layers)]


def _block(pair: tuple[str, Tensor]) -> int | None:
    match = _IN_BLOCK.fullmatch(pair[0])
    return int(match[2]) if match else None
