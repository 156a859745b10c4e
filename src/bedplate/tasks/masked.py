"""Masked language modelling: foretell hidden tokens from what stands on both sides of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.tokenizer import mask_id, token_byte_lengths
from bedplate.errors import InputError
from bedplate.metrics.intervals import ratio_interval
from bedplate.models.bert import MaskedLM
from bedplate.nn.heads import cross_entropy_by_token
from bedplate.tasks import Batch

CANDIDATES = 5  # tokens named for each blank


class Masked:
    """Masked language modelling with an encoder (arXiv 1810.04805, section 3.1).

    Batches hold the masks of `data.masking`: `masked_ids (B, T)`, `masked_at` and `masked_targets (B, K)`; with
    isolated documents also `doc` and `pos (B, T)`. Where ranks share the held-out batches, `collect` makes of one
    rank's results those of all, in the order of the batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "loss": "min",
        "masked_accuracy": "max",
        "pseudo_bits_per_byte": "min",
    }
    unit: ClassVar[Literal["tokens", "images"]] = "tokens"

    def __init__(
        self,
        module: MaskedLM,
        tokenizer: Tokenizer,
        prompts: Sequence[str] = (),
        collect: Callable[[list[Tensor]], list[Tensor]] = list,
    ) -> None:
        self.module, self.tokenizer, self._collect = module, tokenizer, collect
        blank = _blank(tokenizer)
        self.prompts = [prompt if blank in prompt else f"{prompt} {blank}" for prompt in prompts]
        lengths = token_byte_lengths(tokenizer)
        padding = module.config.vocab_size - len(lengths)  # a network may have more rows than its tokenizer has tokens
        self._byte_lengths = torch.from_numpy(np.pad(lengths, (0, max(padding, 0))))

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return {"loss": self.module.loss(*_masks(batch), **_packing(batch))}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Nats a hidden token (`loss`), the share foretold (`masked_accuracy`), and bits a byte of what is hidden.

        With intervals over rows. `pseudo_bits_per_byte` is no code length of the text, since what stands on both sides
        of a token is known; it compares masked models whose tokens differ in length.
        """
        module, device = self.module, self.module.embed.weight.device
        was_training = module.training
        module.eval()
        scores: list[Tensor] = []
        for batch in batches:
            batch = {key: value.to(device) for key, value in batch.items()}
            ids, at, targets = _masks(batch)
            hidden = module.hidden(ids, at=at, **_packing(batch))
            scores.append(torch.stack([self._score(h, t) for h, t in zip(hidden, targets, strict=True)]).cpu())
        module.train(was_training)
        table = torch.cat(self._collect(scores)).double().numpy()
        nats, hits, counted, size = table[table[:, 2] > 0].T  # without a target a row only filled a batch up
        if not size.sum():
            raise InputError("the text to evaluate on has no words to hide; give more text")
        return {
            "loss": ratio_interval(nats, counted),
            "masked_accuracy": ratio_interval(hits, counted),
            "pseudo_bits_per_byte": ratio_interval(nats / math.log(2), size),
        }

    def _score(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(nats, hits, hidden tokens, their bytes) `(4,)` of one row: only its logits are held."""
        logits, counted = self.module.predictions(hidden), targets >= 0
        self._byte_lengths = self._byte_lengths.to(targets.device)  # once
        lengths = self._byte_lengths[targets.clamp(min=0)] * counted
        nats, hits = cross_entropy_by_token(logits, targets), logits.argmax(-1) == targets
        return torch.stack([nats.sum(), hits.sum(), counted.sum(), lengths.sum()])

    def samples(self, seed: int) -> list[dict[str, str]]:
        """Each prompt with its blanks filled by the likeliest tokens; one without a blank has it at its end.

        "prompt" is what stands before the first blank, "text" what follows.
        """
        if not self.prompts:
            return []
        filled = fill_blanks(self.module, self.tokenizer, self.prompts)
        return [_parted(p, f["text"]) for p, f in zip(self.prompts, filled, strict=True)]

    def flops(self, batch: Batch) -> int:
        """The head's are those of hidden tokens alone."""
        (rows, length), places = batch["masked_ids"].shape, batch["masked_at"].shape[1]
        head = self.module.head.weight.numel() + self.module.transform.dense.weight.numel()
        return rows * (length * self.module.flops_per_token(length) - 6 * (length - places) * head)


def _blank(tokenizer: Tokenizer) -> str:
    """How a blank is written."""
    return str(tokenizer.id_to_token(mask_id(tokenizer)))


def _parted(prompt: str, text: str) -> dict[str, str]:
    """A filled text, parted where it leaves the prompt."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text)))
    return {"prompt": text[:same], "text": text[same:]}


def _masks(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch["masked_ids"], batch["masked_at"], batch["masked_targets"]


def _packing(batch: Batch) -> dict[str, Any]:
    return {key: batch[key] for key in ("doc", "pos") if key in batch}


@torch.no_grad()
def fill_blanks(
    module: MaskedLM, tokenizer: Tokenizer, texts: Sequence[str], candidates: int = CANDIDATES
) -> list[dict[str, Any]]:
    """The likeliest tokens for the blanks of each text, in order.

    Several blanks in one text are foretold each by itself, none knowing what fills the others.

    Returns:
        [{"text": with all blanks filled, "token" and "score" (probability) of the first blank's best,
        "blanks": for each blank its `candidates` as [{"token", "score"}]}]

    Raises:
        InputError: the tokenizer has no mask token, or a text has none of it or is longer than the context.
    """
    mask, context = mask_id(tokenizer), module.config.max_position_embeddings
    blank = _blank(tokenizer)
    if not 0 < candidates <= module.config.vocab_size:
        raise InputError(f"candidates={candidates} is not between 1 and the vocabulary of {module.config.vocab_size}")
    was_training, device, filled = module.training, module.embed.weight.device, []
    module.eval()
    for number, text in enumerate(texts, 1):
        ids = tokenizer.encode(_closed_up(tokenizer, text, blank)).ids
        at = [place for place, token in enumerate(ids) if token == mask]
        if not at:
            raise InputError(f"text {number} has no blank; write {blank} where a token is to be filled in")
        if len(ids) > context:
            raise InputError(f"text {number} has {len(ids)} tokens and the model reads {context}; shorten it")
        logits = module(torch.tensor([ids], device=device), at=torch.tensor([at], device=device))[0].float()
        best = logits.softmax(-1).topk(candidates)
        rows = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        blanks = [
            [{"token": tokenizer.decode([i]).strip(), "score": p} for i, p in zip(*row, strict=True)] for row in rows
        ]
        whole = _filled(tokenizer, text.split(blank), [indices[0] for indices, _ in rows])
        filled.append({"text": whole, **blanks[0][0], "blanks": blanks})
    module.train(was_training)
    return filled


def _closed_up(tokenizer: Tokenizer, text: str, blank: str) -> str:
    """Without the space before a blank where tokens bring their own, as they did when they were hidden."""
    return text if _splits_words(tokenizer) else text.replace(f" {blank}", blank)


def _filled(tokenizer: Tokenizer, pieces: list[str], tokens: list[int]) -> str:
    """The pieces around the blanks, with a token in each gap."""
    text = pieces[0]
    for index, piece in zip(tokens, pieces[1:], strict=True):
        name, word = tokenizer.id_to_token(index) or "", tokenizer.decode([index])
        if name.startswith("##"):
            text = text.rstrip(" ") + name[2:]
        elif _splits_words(tokenizer):
            text += word
        else:
            starts_word = word.startswith(" ") or name.startswith("▁")
            text = text.rstrip(" ") + (" " if starts_word and text.strip() else "") + word.lstrip(" ")
        text += piece
    return text


def _splits_words(tokenizer: Tokenizer) -> bool:
    """Whether spaces are no part of tokens, as in WordPiece."""
    return type(tokenizer.model).__name__ == "WordPiece"
