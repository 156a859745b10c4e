"""How likely a model finds a continuation: read from left to right, or with each token masked in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, islice
from typing import Literal, get_args

import numpy as np
import torch
from tokenizers import Tokenizer

from bedplate.data.tokenizer import affixes, mask_id
from bedplate.errors import InputError
from bedplate.hub.model import Model
from bedplate.measure.branches import Request, Score, Tally, causal_scores, token_scores
from bedplate.models.bert import MaskedLM
from bedplate.models.classifier import Classifier
from bedplate.models.gpt import GPT

Scoring = Literal["causal", "masked", "both"]
BATCH_TOKENS = {"cpu": 1024, "cuda": 32768, "mps": 8192}


class Scorer:
    """Log-likelihoods of texts by one model.

    "causal" sums the log-probability of each token given those before it. "masked" is the pseudo-log-likelihood of
    Salazar et al. (arXiv 1910.14659): each token of the continuation is masked, one at a time, and predicted from all
    others. "both" adds the two, for a model that was trained in both ways (GPT-BERT, arXiv 2410.24159).

    Args:
        scoring: causal by default; for a masked language model, which has nothing else, masked.

    Raises:
        InputError: a classifier, no tokenizer, no mask token where one is needed, or a model that is not causal.
    """

    def __init__(self, model: Model, scoring: Scoring | None = None) -> None:
        module = model.module
        if isinstance(module, Classifier):
            raise InputError("a classifier gives no probability to a text; evaluate it on labelled texts (--data)")
        if not isinstance(module, MaskedLM):
            model.need_language_model()  # has the words for an encoder without a head
        self.module, self._gpt = module, module if isinstance(module, GPT) else None
        causal = self._gpt is not None and self._gpt.config.is_causal
        self.scoring = scoring or ("causal" if causal else "masked")
        if self.scoring not in get_args(Scoring):
            raise InputError(f"scoring={scoring!r} is not one of {', '.join(get_args(Scoring))}")
        if self.scoring != "masked" and not causal:
            raise InputError(f"scoring={self.scoring} needs a causal model, and this is a masked one; use masked")
        self.tokenizer, self.context = model.need_tokenizer(), model.config.max_position_embeddings
        self._start = _first(_marker(model, "bos_token", "eos_token"), model.special.bos, *model.special.eos)
        self._start_text = None if self._start is None else self.tokenizer.id_to_token(self._start)
        device = next(module.parameters()).device.type
        self._tokens = BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])
        if self.scoring != "causal":
            self._mask = _needed_mask(self.tokenizer)
            self._shift, self._options, self._before, self._after = self._reading(model)

    @property
    def start(self) -> int:
        """The token that a text begins behind."""
        if self._start is None:
            raise InputError("the model names no token that begins or ends a text, behind which a text could be scored")
        return self._start

    def encode(self, context: str, continuation: str) -> Request:
        """Tokens of a continuation and of the context before it, as lm-evaluation-harness splits them.

        Both are tokenised as one text, so that white space at the end of the context goes to the continuation. A
        continuation without a context stands behind the token that begins a text.
        """
        kept = context.rstrip()
        if not kept:
            target = self.ids(context + continuation, special=False)
            if self._gpt is None:
                return Request([], target)
            repeated = len(target) > 1 and target[0] == self.start
            return Request([self.start], target[1:] if repeated else target)
        before = self.ids(kept, special=self._gpt is not None)
        return Request(before, self.ids(context + continuation, special=self._gpt is not None)[len(before) :])

    @torch.inference_mode()
    def score(self, groups: Sequence[Sequence[Request]]) -> list[list[Score]]:
        """Scores of groups of requests; a group's requests are likely to begin alike.

        Where context and continuation are too long for the model, the context is cut on the left.

        Raises:
            InputError: a continuation alone is too long, or has no token.
        """
        parts = []
        if self.scoring != "masked":
            assert self._gpt is not None
            fitted = [[self._fit(request, self.context + 1) for request in group] for group in groups]
            parts.append(causal_scores(self._gpt, fitted, self._tokens))
        if self.scoring != "causal":
            parts.append(self._masked_scores([self._fit(request, self._room) for request in chain(*groups)]))
        scores = iter(parts[0] if len(parts) == 1 else [one + two for one, two in zip(*parts, strict=True)])
        return [list(islice(scores, len(group))) for group in groups]

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what `score` would refuse.

        Raises:
            InputError: a continuation is too long, or has no token.
        """
        for request in requests:
            self._fit(request, self._room)

    def too_long(self, request: Request) -> bool:
        """Whether the context of a request is cut."""
        return len(request.context) + len(request.target) > self._room

    @property
    def _room(self) -> int:
        """Tokens of context and target that fit; the last one that a causal model predicts it need not read."""
        return self.context + 1 if self.scoring == "causal" else self.context - len(self._before) - len(self._after)

    def _reading(self, model: Model) -> tuple[int, dict[str, bool], list[int], list[int]]:
        """How masked tokens are predicted, all that differs by module: how many places before the mask, with which
        options of the module, and what stands before and after a text.

        A causal model that was trained on masks as well predicts as it always does, one place before.
        """
        if self._gpt is None:
            return 0, {}, *affixes(self.tokenizer)
        end = _first(_marker(model, "eos_token"), *model.special.eos)
        return 1, {"is_causal": False}, [], [] if end is None else [end]

    def _masked_scores(self, requests: Sequence[Request]) -> list[Score]:
        """Scores of requests with one masked copy of the text for each token of the target, in batches of one length:
        without padding, full attention takes its fused kernel."""
        copies = defaultdict[int, list[tuple[int, int]]](list)  # (request, place of the mask) by length of the text
        texts = [[*self._before, *request.context, *request.target, *self._after] for request in requests]
        for number, (request, ids) in enumerate(zip(requests, texts, strict=True)):
            first = len(self._before) + len(request.context)
            copies[len(ids)] += [(number, place) for place in range(first, first + len(request.target))]
        tally = Tally(requests)
        device = next(self.module.parameters()).device
        for length, masks in copies.items():
            step = max(1, self._tokens // length)
            for start in range(0, len(masks), step):
                owner, place = np.array(masks[start : start + step]).T
                copied = np.array([texts[number] for number in owner])
                lines = np.arange(len(copied))
                token = copied[lines, place]
                copied[lines, place] = self._mask
                at = torch.as_tensor(place - self._shift, device=device)[:, None]
                logits = self.module(torch.as_tensor(copied, device=device), at=at, **self._options)[:, 0]
                nats, likeliest = token_scores(logits, lines, token)
                tally.add(owner, nats, likeliest)
        return tally.scores()

    def _fit(self, request: Request, room: int) -> Request:
        length = len(request.target)
        if not length:
            raise InputError("a continuation has no token after its context; nothing of it can be scored")
        if length >= room:
            raise InputError(
                f"a continuation has {length} tokens, which do not fit into the model's context of {self.context}; "
                "shorten it"
            )
        return Request(request.context[-(room - length) :], request.target)

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Token ids, `special`: with what the tokenizer puts around a text, unless the text begins with it."""
        special = special and not (self._start_text and text.startswith(self._start_text))
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special).ids
        return ids


def _needed_mask(tokenizer: Tokenizer) -> int:
    try:
        return mask_id(tokenizer)
    except InputError as error:
        raise InputError(f"scoring with masks is for models that were trained with them, and {error}") from None


def _marker(model: Model, *names: str) -> int | None:
    """Id of the first of these special tokens that the tokenizer's configuration names."""
    for name in names:
        token = model.tokenizer_config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and (index := model.need_tokenizer().token_to_id(token)) is not None:
            return int(index)
    return None


def _first(*ids: int | None) -> int | None:
    return next((index for index in ids if index is not None), None)
