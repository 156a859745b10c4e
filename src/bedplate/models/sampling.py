"""Generation: the filters of a next-token distribution, and the decoding of several prompts at once."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import closing

import torch
from torch import Tensor

from bedplate.errors import InputError
from bedplate.models.decoder import borrowed_decoder, decodable
from bedplate.models.gpt import GPT
from bedplate.models.products import many_rows
from bedplate.models.rules import Rules
from bedplate.nn.cache import Cache

GREEDY = 1e-5  # temperatures below it are taken as 0: logits divided by them would overflow
AHEAD = 16  # tokens that a GPU decodes before the host looks at them, where nobody waits for each


def distribution(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor | None]:
    """What to draw from: weights `(B, K)`, a filtered token's 0, and their ids `(B, K)`; None: all ids in their order.

    `top_k` keeps the k most likely tokens, and of these `top_p` the fewest whose probability reaches p, at least one
    (nucleus sampling, arXiv 1904.09751).
    """
    logits = logits.float() / temperature
    vocab_size = logits.shape[-1]
    p = 1.0 if top_p is None else top_p
    if top_k is not None:
        logits, ids = logits.topk(min(top_k, vocab_size))  # sorted: the most likely first
        weights = logits.softmax(-1)
    else:
        weights = logits.softmax(-1)
        if p == 1:
            return weights, None
        # Tokens below (1 - p) / V have less than 1 - p together, so the kept set lies among the others. To sort a whole
        # vocabulary would take as long as a small model.
        k = int((weights >= (1 - p) / vocab_size).sum(-1).max())
        weights, ids = weights.topk(max(k, 1))
    if p < 1:
        weights = weights * (weights.cumsum(-1) - weights < p)
    return weights, ids


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index `(B, 1)` where a row's running sum of `weights (B, K)` reaches the share `uniform (B, 1)` in (0, 1].

    It takes one number a row, so a row's draws come from its own generator alone and are the same on every device. As
    the share is never 0 and the first index is taken, a weight of 0 is never drawn.
    """
    total = weights.cumsum(-1)
    index = torch.searchsorted(total, uniform * total[:, -1:])
    return index.clamp(max=weights.shape[-1] - 1)  # weights that are not numbers would lead past the end


class Sampler:
    """Chooses the next token of every row: rules, temperature, top-k, top-p, then a draw."""

    def __init__(
        self,
        prompts: list[list[int]],
        *,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int | None,
        rules: Rules | None = None,
    ) -> None:
        if not (0 <= temperature < math.inf):
            raise InputError(f"temperature={temperature} must be 0 (greedy) or a positive number")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k} must be at least 1, or left out to keep all tokens")
        if top_p is not None and not (0 < top_p <= 1):
            raise InputError(f"top_p={top_p} must be above 0 and at most 1")
        self.temperature, self.top_k, self.top_p, self.rules = temperature, top_k, top_p, rules
        repeats = Counter[tuple[int, ...]]()
        self.generators = []
        for prompt in map(tuple, prompts):
            self.generators.append(random.Random(None if seed is None else seed + repeats[prompt]))
            repeats[prompt] += 1

    @property
    def greedy(self) -> bool:
        """Whether the choice is the largest logit alone."""
        return self.temperature < GREEDY and self.rules is None

    def __call__(self, logits: Tensor) -> Tensor:
        """Token ids `(B, 1)` for logits `(B, V)`."""
        if self.rules is not None:
            logits = self.rules(logits)
        if self.temperature < GREEDY:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            weights, ids = distribution(logits, self.temperature, self.top_k, self.top_p)
            uniform = torch.tensor([[1 - generator.random()] for generator in self.generators], device=logits.device)
            chosen = draw(weights, uniform)
            if ids is not None:
                chosen = ids.gather(1, chosen)
        if self.rules is not None:
            self.rules.add(chosen)
        return chosen


def check_prompts(prompts: list[list[int]], vocab_size: int, context: int) -> None:
    for row, prompt in enumerate(prompts, 1):
        if not prompt:
            raise InputError(f"prompt {row} is empty: give at least one token, such as the one that begins a document")
        if len(prompt) >= context:
            raise InputError(
                f"prompt {row} has {len(prompt):,} tokens and the model's context holds {context:,}, "
                "new ones included; shorten the prompt"
            )
        if not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise InputError(
                f"prompt {row} has a token id outside the model's vocabulary of {vocab_size:,}; "
                "use the model's own tokenizer"
            )


def room_for(module: GPT, prompts: list[list[int]], tokens: int, before: Cache | None) -> Cache:
    """A cache for `tokens` more of each prompt than what stands `before` them, which is copied into it."""
    if before is None:
        return module.trunk.make_cache(len(prompts), tokens)
    return before.repeated(1, before.length + tokens)


def prefill(module: GPT, prompts: list[list[int]], cache: Cache) -> tuple[Tensor, Tensor | None]:
    """Hidden states `(B, D)` of each row's last token; positions `(B, 1)` of the next, None where all are the same.

    The prompts stand behind what the cache holds.
    """
    device, start = module.embed.weight.device, cache.length
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    if min(lengths) == longest:
        with many_rows(module.embed.weight):
            return module.hidden(ids, cache=cache)[:, -1], None
    count = torch.tensor(lengths, device=device)[:, None]
    valid = torch.arange(longest, device=device) < count
    with many_rows(module.embed.weight):
        hidden = module.hidden(ids, valid=valid, right_padded=True, cache=cache)
    return hidden[torch.arange(len(prompts), device=device), count[:, 0] - 1], start + count


def _columns(
    module: GPT, prompts: list[list[int]], steps: int, choose: Sampler, ahead: int, before: Cache | None = None
) -> Generator[list[int]]:
    """The next token of every row, `steps` times.

    A row that has ended is decoded on beside the others. `ahead` tokens are decoded before any is looked at.
    """
    fast, longest, context = decodable(module), max(map(len, prompts)), module.config.max_position_embeddings
    cache = room_for(module, prompts, longest if fast else longest + steps, before)
    hidden, pos = prefill(module, prompts, cache)
    chosen = choose(module.head(hidden))
    yield chosen.flatten().tolist()
    left = steps - 1
    if not fast:
        for _ in range(left):
            hidden = module.hidden(chosen, pos=pos, cache=cache)[:, -1]
            if pos is not None:
                pos = (pos + 1).clamp(max=context - 1)  # learned positions have no more, and an ended row may be there
            chosen = choose(module.head(hidden))
            yield chosen.flatten().tolist()
        return
    with borrowed_decoder(module, len(prompts), cache.length, left) as decoder:
        decoder.start(cache, pos)
        del cache
        while left:
            n = min(ahead, left)
            chosen = choose(decoder.step(chosen[:, -1:])) if n == 1 else decoder.greedy(chosen[:, -1:], n)
            yield from chosen.t().tolist()
            left -= n


@torch.inference_mode()
def generate(
    module: GPT,
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    ngrams_of_prompt: bool = True,
    min_new_tokens: int = 0,
    seed: int | None = None,
    stop_ids: Collection[int] = frozenset(),
    on_token: Callable[[int, int], bool | None] | None = None,
    before: Cache | None = None,
) -> list[list[int]]:
    """Continuations, without the prompts, of several prompts of any lengths at once.

    A row depends on its prompt and the settings, not on the rows beside it. The module must be in evaluation mode.

    Args:
        max_new_tokens: of each row; a row ends earlier where prompt and continuation fill the model's context.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k, top_p: see `distribution`.
        repetition_penalty, no_repeat_ngram_size, ngrams_of_prompt, min_new_tokens: see `rules.Rules`.
        seed: of every row; the k-th repetition of the same prompt draws with seed + k. None: fresh entropy.
        stop_ids: tokens that end a row and are not part of it.
        on_token: called with (row, token id) as each token is recorded; returning True ends the row.
        before: keys and values of what stands before each prompt, such as a picture: as many tokens in every row, and
            none of them padding. It stays as it is.

    Raises:
        InputError: for an empty or too long prompt, an id outside the vocabulary, or a setting outside its range.
    """
    assert not module.training, "call module.eval() first: dropout has no place in generation"
    context = module.config.max_position_embeddings - (before.length if before else 0)
    check_prompts(prompts, module.config.vocab_size, context)
    rules = Rules.of(
        prompts,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        ngrams_of_prompt=ngrams_of_prompt,
        stop_ids=stop_ids,
    )
    choose = Sampler(prompts, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, rules=rules)
    if not prompts:
        return []
    limits = [min(max_new_tokens, context - len(prompt)) for prompt in prompts]
    unwatched = on_token is None and choose.greedy and module.embed.weight.is_cuda
    rows: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    with closing(_columns(module, prompts, max(limits), choose, AHEAD if unwatched else 1, before)) as columns:
        for column in columns:
            for row in sorted(running):
                token = column[row]
                if token in stop_ids:
                    running.remove(row)
                    continue
                rows[row].append(token)
                if (on_token is not None and on_token(row, token)) or len(rows[row]) == limits[row]:
                    running.remove(row)
            if not running:
                break
    return rows
