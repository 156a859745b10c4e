"""Beam search: the continuation whose tokens are the likeliest together, as far as a few candidates a step find it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from bedplate.errors import InputError
from bedplate.models import sampling
from bedplate.models.gpt import GPT
from bedplate.models.rules import Rules
from bedplate.models.sampling import check_prompts, prefill, room_for
from bedplate.nn.cache import Cache

EarlyStopping = bool | Literal["never"]
SAMPLING = {"temperature": 1.0, "top_k": None, "top_p": None, "seed": None}
"""Options of sampling and what they are by default: beam search draws nothing."""


def generate(
    module: GPT,
    prompts: list[list[int]],
    *,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    on_token: Callable[[int, int], bool | None] | None = None,
    **options: Any,
) -> list[list[int]]:
    """Continuations by `sampling.generate`, or with more than one beam by `beam_search`; options are theirs.

    Beams are known when they are complete: `on_token` then gets all tokens of a row, and True cuts the row there.

    Raises:
        InputError: what these two raise, an option of the one given to the other, or num_beams below 1.
    """
    if num_beams < 1:
        raise InputError(f"num_beams={num_beams} must be 1 (no beam search) or more")
    if num_beams == 1:
        if length_penalty != 1 or early_stopping is not False:
            raise InputError("length_penalty and early_stopping are of beam search; give num_beams=2 or more with them")
        return sampling.generate(module, prompts, on_token=on_token, **options)
    for name, default in SAMPLING.items():
        if options.pop(name, default) != default:
            raise InputError(f"{name} is of sampling, and num_beams={num_beams} searches; leave one of them out")
    rows = beam_search(
        module, prompts, num_beams=num_beams, length_penalty=length_penalty, early_stopping=early_stopping, **options
    )
    if on_token is None:
        return rows
    return [
        row[: next((n for n, token in enumerate(row, 1) if on_token(number, token)), len(row))]
        for number, row in enumerate(rows)
    ]


Going = tuple[list[float], list[int], list[int]]
"""(log-probabilities, parents, tokens) `(K,)` of the beams that go on; a parent is a beam of the step before."""


@dataclass
class _Search:
    """The search for one prompt's continuation."""

    beams: list[list[int]]  # (K,) tokens of each beam, the likeliest first
    limit: int  # tokens of a continuation at most
    stop_ids: Collection[int]
    length_penalty: float
    early_stopping: EarlyStopping
    ended: list[tuple[float, list[int]]] = field(default_factory=list)  # (score, tokens), the K best, the best first
    done: bool = False

    def advance(self, values: Sequence[float], parents: Sequence[int], tokens: Sequence[int]) -> Going:
        """Choose among candidates, the likeliest first: which end, and which go on."""
        size = len(self.beams)
        idle = [0.0] * size, list(range(size)), [0] * size  # decoded on beside the others, and not looked at
        if self.done:
            return idle
        length = len(self.beams[0]) + 1
        going: list[tuple[float, int, int]] = []
        for rank, (value, parent, token) in enumerate(zip(values, parents, tokens, strict=True)):
            stops = token in self.stop_ids
            if not stops and length < self.limit:
                going.append((value, parent, token))
            elif rank < size:
                text = self.beams[parent] + ([] if stops else [token])
                self.ended.append((value / length**self.length_penalty, text))
        self.ended = sorted(self.ended, key=lambda text: -text[0])[:size]
        self.done = not going or self._settled(going[0][0], length)
        if self.done:
            return idle
        going = going[:size] + [(-math.inf, *going[0][1:])] * (size - len(going))  # too few where all others stop
        self.beams = [[*self.beams[parent], token] for _, parent, token in going]
        return [value for value, _, _ in going], [parent for _, parent, _ in going], [token for _, _, token in going]

    def _settled(self, value: float, length: int) -> bool:
        """Whether as many texts have ended as there are beams, and the likeliest beam, of this log-probability, is not
        expected to score above the worst of them."""
        if len(self.ended) < len(self.beams):
            return False
        longest = self.limit if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self.early_stopping is True or value / longest**self.length_penalty <= self.ended[-1][0]


@torch.inference_mode()
def beam_search(
    module: GPT,
    prompts: list[list[int]],
    *,
    num_beams: int,
    max_new_tokens: int = 128,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
    stop_ids: Collection[int] = frozenset(),
    before: Cache | None = None,
    **rules: Any,
) -> list[list[int]]:
    """The best continuation found of each prompt, without the prompt, by the rules of `transformers`.

    At each step the `num_beams` likeliest continuations go on. One that ends among them (with a stop token, or at its
    limit) is kept with its log-probability / length ** length_penalty as score, the stop token counted in the length;
    the highest score is the result. A row does not depend on the rows beside it. The module must be in evaluation mode.

    Args:
        length_penalty: above 0 favours long texts, below 0 short ones.
        early_stopping: True: end with `num_beams` ended texts. False: end where the likeliest beam, at its present
            length, scores below all of those. "never": end where it could not at any length.
        before: what stands before each prompt, see `sampling.generate`.
        rules: repetition_penalty, no_repeat_ngram_size, ngrams_of_prompt, min_new_tokens; see `rules.Rules`.

    Raises:
        InputError: see `sampling.generate`; a length penalty that is no number, an early_stopping that is not known.
    """
    assert not module.training, "call module.eval() first: dropout has no place in generation"
    if not abs(length_penalty) <= 10:
        raise InputError(f"length_penalty={length_penalty} must be from -10 to 10; 0 is none")
    if early_stopping not in (True, False, "never"):
        raise InputError(f"early_stopping={early_stopping!r} is not known; choose True, False or 'never'")
    context, vocab_size = module.config.max_position_embeddings, module.config.vocab_size
    room = context - (before.length if before else 0)
    check_prompts(prompts, vocab_size, room)
    repeated = [prompt for prompt in prompts for _ in range(num_beams)]
    followed = Rules.of(repeated, max_new_tokens=max_new_tokens, stop_ids=stop_ids, **rules)
    if not prompts:
        return []
    settings = (stop_ids, length_penalty, early_stopping)
    searches = [_Search([[]] * num_beams, min(max_new_tokens, room - len(p)), *settings) for p in prompts]
    longest, steps = max(map(len, prompts)), max(search.limit for search in searches)
    cache = room_for(module, prompts, longest, before)
    hidden, pos = prefill(module, prompts, cache)
    start = cache.length
    cache = cache.repeated(num_beams, start + steps)
    hidden, pos = hidden.repeat_interleave(num_beams, 0), None if pos is None else pos.repeat_interleave(num_beams, 0)
    # As many candidates as are needed for `num_beams` of them to go on, whichever end.
    width = min(max(2, 1 + len(stop_ids)) * num_beams, num_beams * vocab_size)
    scores = torch.full((len(prompts), num_beams), -torch.inf, device=hidden.device)
    scores[:, 0] = 0.0  # the beams of a prompt begin as one
    first_row = torch.arange(0, len(repeated), num_beams, device=hidden.device)[:, None]
    for _ in range(steps):
        logs = module.head(hidden).float().log_softmax(-1)
        logs = logs if followed is None else followed(logs)
        values, places = (logs.view(*scores.shape, -1) + scores[..., None]).flatten(1).topk(width)
        candidates = zip(values.tolist(), (places // vocab_size).tolist(), (places % vocab_size).tolist(), strict=True)
        going = [search.advance(*candidate) for search, candidate in zip(searches, candidates, strict=True)]
        if all(search.done for search in searches):
            break
        scores, parents, tokens = (torch.tensor(part, device=hidden.device) for part in zip(*going, strict=True))
        rows, ids = (first_row + parents).flatten(), tokens.view(-1, 1)
        if followed is not None:
            followed.reorder(rows)
            followed.add(ids)
        cache.reorder(rows, start)
        hidden = module.hidden(ids, pos=pos, cache=cache)[:, -1]
        if pos is not None:
            pos = (pos + 1).clamp(max=context - 1)  # learned positions have no more, and an ended row may be there
    return [search.ended[0][1] for search in searches]
