"""How likely continuations are: the log-likelihoods of several ways to go on from one beginning, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bedplate.models.gpt import GPT
from bedplate.nn.heads import cross_entropy_by_token

TOKENS = 8192  # of a batch, padding included
ROWS = 512  # hidden states whose logits are held at one time


@dataclass(frozen=True, slots=True)
class Choice:
    """A beginning and the ways to go on from it, as token ids; none of them empty."""

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def length(self) -> int:
        """Tokens that the network reads: a continuation's last token is only foretold."""
        return len(self.prefix) + sum(len(ids) - 1 for ids in self.continuations)

    @property
    def reach(self) -> int:
        """Tokens of the beginning with the longest continuation: what must fit into the model's context."""
        return len(self.prefix) + max(map(len, self.continuations))


@torch.inference_mode()
def log_likelihoods(module: GPT, choices: Sequence[Choice], tokens: int = TOKENS) -> list[list[float]]:
    """log P(continuation | prefix) in nats, of each continuation of each choice, in order.

    The beginning is read once: it is document 0, which all continuations see, and each continuation is a document of
    its own whose positions go on from it. What a choice gets does not depend on the others.

    Args:
        choices: each must fit into the context: `Choice.reach` at most `max_position_embeddings`.
        tokens: of a batch, padding included.
    """
    found: list[list[float]] = [[] for _ in choices]
    by_length = sorted(range(len(choices)), key=lambda i: choices[i].length)
    start = 0
    for stop in range(1, len(by_length) + 1):
        full = stop < len(by_length) and (stop + 1 - start) * choices[by_length[stop]].length > tokens
        if stop == len(by_length) or full:
            index = by_length[start:stop]
            for i, values in zip(index, _batch(module, [choices[i] for i in index]), strict=True):
                found[i] = values
            start = stop
    return found


def _batch(module: GPT, choices: list[Choice]) -> list[list[float]]:
    device = module.embed.weight.device
    shape = len(choices), max(choice.length for choice in choices)
    ids, pos, doc = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    rows, places, targets = list[int](), list[int](), list[int]()
    for row, choice in enumerate(choices):
        end = len(choice.prefix)
        ids[row, :end] = torch.tensor(choice.prefix)
        pos[row, :end] = torch.arange(end)
        for number, continuation in enumerate(choice.continuations, 1):
            read = len(continuation) - 1
            part = slice(end, end + read)
            ids[row, part] = torch.tensor(continuation[:-1], dtype=torch.long)
            pos[row, part] = torch.arange(len(choice.prefix), len(choice.prefix) + read)
            doc[row, part] = number
            rows += [row] * len(continuation)
            places += [len(choice.prefix) - 1, *range(end, end + read)]
            targets += continuation
            end += read
        doc[row, end:] = len(choice.continuations) + 1  # padding: nothing that counts comes after it
    apart = any(len(choice.continuations) > 1 and choice.length > len(choice.prefix) for choice in choices)
    if apart:
        states = module.hidden(ids.to(device), pos=pos.to(device), doc=doc.to(device))
    else:  # plain causal rows, which need no mask
        states = module.hidden(ids.to(device))
    hidden = states[torch.tensor(rows), torch.tensor(places)]
    nats = -torch.cat([_nats(module, h, t) for h, t in _blocks(hidden, torch.tensor(targets, device=device))])
    lengths = [len(continuation) for choice in choices for continuation in choice.continuations]
    values = iter([float(part.sum()) for part in nats.double().cpu().split(lengths)])
    return [[next(values) for _ in choice.continuations] for choice in choices]


def _nats(module: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy_by_token(module.head(hidden), targets)


def _blocks(hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(ROWS), targets.split(ROWS), strict=True))
