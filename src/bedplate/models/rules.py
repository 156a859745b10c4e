"""Rules of decoding: what the tokens before forbid, or make less likely, whichever way the next one is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from bedplate.errors import InputError


def penalize(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Logits `(B, V)`, those of tokens `ids (B, T)` made smaller: / penalty where positive, * penalty where negative.

    The rule of CTRL (arXiv 1909.05858, section 4.1) in the form that also works for negative logits.
    """
    before = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(before > 0, before / penalty, before * penalty))


def repeats(ids: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The tokens that would end an n-gram of `size` that a row of `ids (B, T)` holds already: (rows, tokens) `(n,)`.

    A row's n-grams begin at `start (B,)` or after it (arXiv 1705.04304, section 2.5, forbids them for summaries).
    """
    if ids.shape[1] < size:
        nothing = ids.new_empty(0)
        return nothing, nothing
    grams = ids.unfold(1, size, 1)  # (B, T - size + 1, size)
    same = (grams[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1)
    same &= torch.arange(grams.shape[1], device=ids.device) >= start[:, None]
    row, place = same.nonzero(as_tuple=True)
    return row, grams[row, place, -1]


class Rules:
    """What rows of tokens imply for their next one. They act on logits or log-probabilities `(B, V)`.

    Args:
        prompts: tokens of each row so far.
        min_new_tokens: tokens of the continuation before a stop token may be chosen.
        repetition_penalty: see `penalize`; it covers prompt and continuation.
        no_repeat_ngram_size: no n-gram of this many tokens stands twice in a row; 0: any may.
        ngrams_of_prompt: whether those of the prompt are counted, or those of the continuation alone.
        stop_ids: tokens that end a row.

    Attributes:
        ids: `(B, T)` prompt and continuation; a short prompt begins with copies of its first token, which are no part
            of an n-gram and penalise no other token.
    """

    def __init__(
        self,
        prompts: list[list[int]],
        *,
        min_new_tokens: int,
        repetition_penalty: float,
        no_repeat_ngram_size: int,
        ngrams_of_prompt: bool,
        stop_ids: Collection[int],
    ) -> None:
        longest = max(map(len, prompts), default=0)
        missing = [longest - len(prompt) for prompt in prompts]
        self.ids = torch.tensor([prompt[:1] * n + prompt for n, prompt in zip(missing, prompts, strict=True)])
        self._start = torch.tensor(missing if ngrams_of_prompt else [longest] * len(prompts))
        self._unfinished = longest + min_new_tokens
        self._penalty, self._size, self._stops = repetition_penalty, no_repeat_ngram_size, list(stop_ids)

    @staticmethod
    def of(
        prompts: list[list[int]],
        *,
        max_new_tokens: int,
        min_new_tokens: int = 0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        ngrams_of_prompt: bool = True,
        stop_ids: Collection[int] = (),
    ) -> Rules | None:
        """The rules that these settings make; None where they make none.

        Raises:
            InputError: a setting is outside its range.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if not 0 <= min_new_tokens <= max_new_tokens:
            raise InputError(
                f"min_new_tokens={min_new_tokens} must be from 0 to max_new_tokens, which is {max_new_tokens}"
            )
        if not (0 < repetition_penalty < math.inf):
            raise InputError(f"repetition_penalty={repetition_penalty} must be a positive number; 1 is no penalty")
        if no_repeat_ngram_size < 0:
            raise InputError(f"no_repeat_ngram_size={no_repeat_ngram_size} must be 0 (any may repeat) or more")
        if repetition_penalty == 1 and not no_repeat_ngram_size and not (min_new_tokens and stop_ids):
            return None
        return Rules(
            prompts,
            min_new_tokens=min_new_tokens,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            ngrams_of_prompt=ngrams_of_prompt,
            stop_ids=stop_ids,
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits `(B, V)` by the rules, -inf where a token is forbidden; those given stay as they are."""
        self.ids, self._start = self.ids.to(logits.device), self._start.to(logits.device)
        logits = penalize(logits, self.ids, self._penalty) if self._penalty != 1 else logits.clone()
        if self._size:
            logits[repeats(self.ids, self._start, self._size)] = -torch.inf
        if self._stops and self.ids.shape[1] < self._unfinished:
            logits[:, [stop for stop in self._stops if stop < logits.shape[1]]] = -torch.inf
        return logits

    def add(self, chosen: Tensor) -> None:
        """Take the tokens `chosen (B, 1)` in."""
        self.ids = torch.cat((self.ids, chosen), 1)

    def reorder(self, rows: Tensor) -> None:
        """Let row i go on from row `rows[i]` of `rows (B,)`, which has the same prompt."""
        self.ids = self.ids.index_select(0, rows)
