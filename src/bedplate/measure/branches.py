"""Causal log-likelihoods of many continuations, none of whose shared beginnings is computed twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import torch
from torch import Tensor

from bedplate.models.gpt import GPT

HEAD_ROWS = 512  # states whose logits are held at one time


@dataclass(frozen=True, slots=True)
class Request:
    """Token ids of a continuation, `target`, and of what stands before it; neither is empty."""

    context: list[int]
    target: list[int]


@dataclass(frozen=True, slots=True)
class Score:
    """Log-likelihood of a target in nats; whether each of its tokens was the likeliest; how many these are."""

    log_likelihood: float
    greedy: bool
    tokens: int

    def __add__(self, other: Score) -> Score:
        nats, greedy = self.log_likelihood + other.log_likelihood, self.greedy and other.greedy
        return Score(nats, greedy, self.tokens + other.tokens)


class Tally:
    """Adds up what is found of the tokens of many requests, in any order."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._tokens = [len(request.target) for request in requests]
        self._nats, self._greedy = np.zeros(len(requests)), np.ones(len(requests), bool)

    def add(self, owner: np.ndarray, nats: np.ndarray, likeliest: np.ndarray) -> None:
        """One scored token each `(T,)`: the number of its request, its log-probability, whether it is the likeliest."""
        np.add.at(self._nats, owner, nats)
        np.logical_and.at(self._greedy, owner, likeliest)

    def scores(self) -> list[Score]:
        found = zip(self._nats.tolist(), self._greedy.tolist(), self._tokens, strict=True)
        return [Score(*values) for values in found]


@dataclass(slots=True)
class Row:
    """Sequences that begin alike, as one row: the shared beginning is document 0, which all the others see.

    Attributes:
        ids, pos, doc: of each token of the row.
        states: places in the row whose next token is scored, each once.
        scored: (number in `states`, token, request) of every scored token.
    """

    ids: list[int]
    pos: list[int]
    doc: list[int]
    states: dict[int, int] = field(default_factory=dict)
    scored: list[tuple[int, int, int]] = field(default_factory=list)

    @staticmethod
    def of(requests: Sequence[tuple[int, Request]]) -> Row:
        """A row of (number, request)."""
        inputs = [request.context + request.target[:-1] for _, request in requests]
        columns = zip(*inputs, strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        row = Row(inputs[0][:shared], list(range(shared)), [0] * shared)
        for branch, ((number, request), ids) in enumerate(zip(requests, inputs, strict=True), 1):
            offset = len(row.ids) - shared
            row.ids += ids[shared:]
            row.pos += range(shared, len(ids))
            row.doc += [branch] * (len(ids) - shared)
            for i, token in enumerate(request.target, len(request.context) - 1):
                place = i if i < shared else i + offset
                state = row.states.setdefault(place, len(row.states))
                row.scored.append((state, token, number))
        return row

    @property
    def branched(self) -> bool:
        return self.doc[-1] > 0


def causal_scores(module: GPT, groups: Sequence[Sequence[Request]], tokens: int) -> list[Score]:
    """Scores of the requests of all groups, in order.

    Args:
        groups: requests of a group are likely to begin alike, such as the choices of one question.
        tokens: of a batch, padding included; a single sequence may be longer.
    """
    tally = Tally([request for group in groups for request in group])
    rows = sorted(_rows(groups, tokens), key=lambda row: (row.branched, len(row.ids)))
    for batch in _batches(rows, tokens):
        states, scored = _states(module, batch)
        for start in range(0, len(states), HEAD_ROWS):
            here = scored[np.searchsorted(scored[:, 0], start) : np.searchsorted(scored[:, 0], start + HEAD_ROWS)]
            state, token, owner = here.T
            nats, likeliest = token_scores(module.head(states[start : start + HEAD_ROWS]), state - start, token)
            tally.add(owner, nats, likeliest)
    return tally.scores()


def token_scores(logits: Tensor, row: np.ndarray, token: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, whether it is the likeliest) of tokens `(T,)` by the logits `(R, V)` of their `row (T,)`."""
    logits = logits.float()
    index, wanted = (torch.as_tensor(values, device=logits.device) for values in (row, token))
    nats = logits[index, wanted] - logits.logsumexp(1)[index]
    return nats.cpu().double().numpy(), (logits.argmax(1)[index] == wanted).cpu().numpy()


def _rows(groups: Sequence[Sequence[Request]], tokens: int) -> Iterator[Row]:
    """A row a group, or several where one would be longer than `tokens`."""
    number = 0
    for group in groups:
        part: list[tuple[int, Request]] = []
        length = 0
        for request in group:
            size = len(request.context) + len(request.target)
            if part and length + size > tokens:
                yield Row.of(part)
                part, length = [], 0
            part.append((number, request))
            number, length = number + 1, length + size
        if part:
            yield Row.of(part)


def _batches(rows: list[Row], tokens: int) -> Iterator[list[Row]]:
    """Cut rows sorted by length into batches, those with branches apart: only these need a mask."""
    start = 0
    for stop in range(1, len(rows) + 1):
        full = stop == len(rows) or (stop + 1 - start) * len(rows[stop].ids) > tokens
        if full or rows[stop].branched != rows[start].branched:
            yield rows[start:stop]
            start = stop


def _states(module: GPT, rows: list[Row]) -> tuple[Tensor, np.ndarray]:
    """Hidden states `(U, D)` of the places of all rows, and (state, token, request) of all tokens, sorted `(T, 3)`."""
    length = max(len(row.ids) for row in rows)

    def padded(name: str, padding: int) -> Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([value + [padding] * (length - len(value)) for value in values], device=device)

    device = module.embed.weight.device
    # Padding stands behind all that is scored, and as document -1 no branch sees it.
    pos, doc = (padded("pos", 0), padded("doc", -1)) if rows[0].branched else (None, None)
    hidden = module.hidden(padded("ids", 0), pos=pos, doc=doc)
    first = np.cumsum([0] + [len(row.states) for row in rows])
    places = np.concatenate([np.array(list(row.states)) + i * length for i, row in enumerate(rows)])
    scored = np.concatenate([np.add(row.scored, [first[i], 0, 0]) for i, row in enumerate(rows)])
    states = hidden.flatten(0, 1)[torch.as_tensor(places, device=device)]
    return states, scored[np.argsort(scored[:, 0], kind="stable")]
