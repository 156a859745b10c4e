"""Language modelling: predict the next token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.tokenizer import end_of_text_id, token_byte_lengths
from bedplate.errors import InputError
from bedplate.metrics.intervals import ratio_interval
from bedplate.models.gpt import GPT
from bedplate.models.sampling import generate
from bedplate.nn.heads import cross_entropy_by_token
from bedplate.tasks import Batch


class Language:
    """Language modelling of text with a GPT: causal, masked, or both with the same weights.

    Batches hold `ids` and `targets (B, T)`; with isolated documents also `doc` and `pos (B, T)`. Where `masked_share`
    is not 0, they hold the masks of `data.masking`, and the first rows of a batch, so large a share of it, are read
    from both sides to foretell what is hidden. With the document objective they hold `given` and `asked (B, K, W)` of
    `data.documents`, with the passage objective `passages (B, K, N)` and `others (B, K, W)`; both need
    `token_statistics (2, V)`. Where ranks share the held-out batches, `collect` makes of one rank's results those of
    all, in the order of the batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "bits_per_byte": "min",
        "loss": "min",
        "masked_loss": "min",
        "masked_accuracy": "max",
    }
    unit: ClassVar[Literal["tokens", "images"]] = "tokens"

    def __init__(
        self,
        module: GPT,
        tokenizer: Tokenizer,
        prompts: Sequence[str] = ("",),
        sample_tokens: int = 48,
        encode_prompt: Callable[[str], list[int]] | None = None,
        stop_ids: Iterable[int] | None = None,
        masked_share: float = 0.0,
        document_weight: float = 0.0,
        passage_weight: float = 0.0,
        token_statistics: Tensor | None = None,
        collect: Callable[[list[Tensor]], list[Tensor]] = list,
    ) -> None:
        self.module, self.tokenizer, self._collect = module, tokenizer, collect
        self.prompts, self.sample_tokens = list(prompts), sample_tokens
        self.encode_prompt = encode_prompt or (lambda prompt: tokenizer.encode(prompt).ids)
        self.stop_ids, self.masked_share = stop_ids, masked_share
        self.document_weight, self.passage_weight = document_weight, passage_weight
        self._token_statistics = token_statistics
        lengths = token_byte_lengths(tokenizer)
        padding = module.config.vocab_size - len(lengths)  # a network may have more rows than its tokenizer has tokens
        self._byte_lengths = torch.from_numpy(np.pad(lengths, (0, max(padding, 0))))

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """A masked row counts as a causal one: the mean over what it hides stands for each of its tokens."""
        masked, causal = self._parts(batch)
        ids = batch["ids"]
        total, count = (torch.zeros((), device=ids.device) for _ in range(2))
        parts: dict[str, tuple[Tensor, Tensor]] = {}
        if len(ids[causal]):
            nats, counted = self.module.loss(ids[causal], batch["targets"][causal], **_packing(batch, causal))
            parts["next_token"] = (nats, counted)
            total, count = nats, counted.float()
        if len(ids[masked]):
            nats, hidden = self._masked_loss(batch, masked)
            parts["masked"] = (nats, hidden)
            tokens = ids[masked].numel()
            total, count = total + nats * (tokens / hidden.clamp(min=1)), count + tokens
        for loss, names, weight in (
            (self.module.document_loss, ("given", "asked"), self.document_weight),
            (self.module.passage_loss, ("passages", "others"), self.passage_weight),
        ):
            if names[0] in batch:
                assert self._token_statistics is not None
                self._token_statistics = self._token_statistics.to(ids.device)  # once
                nats, documents = loss(*(batch[name].flatten(0, 1) for name in names), *self._token_statistics)
                total = total + weight * nats / documents.clamp(min=1) * count  # a mean beside a mean
        return {"loss": (total, count), **parts}

    def _parts(self, batch: Batch) -> tuple[slice, slice]:
        """(the rows that are masked, the causal ones)."""
        rows = round(self.masked_share * len(batch["ids"]))
        return slice(0, rows), slice(rows, None)

    def _masked_loss(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        names = "masked_ids", "masked_at", "masked_targets"
        return self.module.masked_loss(*(batch[name][rows] for name in names), **_packing(batch, rows))

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Bits per UTF-8 byte and nats per token (`loss`), with intervals over rows; of masks, nats and hits a token.

        Special tokens stand for no bytes, so predicting them counts in the loss but not in bits per byte.
        """
        module = self.module
        was_training = module.training
        module.eval()
        scores: list[Tensor] = []
        device = module.embed.weight.device
        for batch in batches:
            batch = {key: value.to(device) for key, value in batch.items()}
            hidden = module.hidden(batch["ids"], **_packing(batch))
            rows = [self._score(h, t) for h, t in zip(hidden, batch["targets"], strict=True)]
            scores.append(torch.cat((torch.stack(rows), self._score_masked(batch)), 1).cpu())
        module.train(was_training)
        table = torch.cat(self._collect(scores)).double().numpy()
        table = table[table[:, 1] > 0]  # without a target a row only filled a batch up
        nats, counted, text_nats, text_bytes, masked_nats, hits, hidden_tokens = table.T
        if not text_bytes.sum():
            raise InputError("the text to evaluate on is shorter than two tokens; give more text")
        metrics = {
            "bits_per_byte": ratio_interval(text_nats / math.log(2), text_bytes),
            "loss": ratio_interval(nats, counted),
        }
        if hidden_tokens.sum():
            metrics["masked_loss"] = ratio_interval(masked_nats, hidden_tokens)
            metrics["masked_accuracy"] = ratio_interval(hits, hidden_tokens)
        return metrics

    def _score_masked(self, batch: Batch) -> Tensor:
        """(nats, hits, number) of each row's hidden tokens `(B, 3)`; zeros where nothing is hidden."""
        if "masked_ids" not in batch:
            return torch.zeros(len(batch["ids"]), 3, device=batch["ids"].device)
        at, targets = batch["masked_at"], batch["masked_targets"]
        logits = self.module.head(self.module.hidden(batch["masked_ids"], is_causal=False, at=at, **_packing(batch)))
        nats, hits = cross_entropy_by_token(logits, targets), logits.argmax(-1) == targets
        return torch.stack([nats.sum(1), hits.sum(1), (targets >= 0).sum(1)], 1)

    def _score(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(nats, counted tokens, nats of text tokens, bytes of text) `(4,)` of one row: only its logits are held."""
        losses = cross_entropy_by_token(self.module.head(hidden), targets)
        counted = targets >= 0
        self._byte_lengths = self._byte_lengths.to(targets.device)  # once
        lengths = self._byte_lengths[targets.clamp(min=0)] * counted
        return torch.stack([losses.sum(), counted.sum(), (losses * (lengths > 0)).sum(), lengths.sum()])

    def samples(self, seed: int) -> list[dict[str, str]]:
        """A continuation of each prompt, drawn at temperature 0.8 from the 50 likeliest tokens."""
        if not self.sample_tokens or not self.prompts:
            return []
        end = end_of_text_id(self.tokenizer)
        stop_ids = {end} if self.stop_ids is None else set(self.stop_ids)
        prompts = [self.encode_prompt(prompt) or [end] for prompt in self.prompts]
        was_training = self.module.training
        self.module.eval()
        drawn = generate(
            self.module,
            prompts,
            max_new_tokens=self.sample_tokens,
            temperature=0.8,
            top_k=50,
            seed=seed,
        )
        self.module.train(was_training)
        # Cut only now: ranks that share the weights must all take the same number of steps.
        drawn = [list(takewhile(lambda token: token not in stop_ids, row)) for row in drawn]
        texts = self.tokenizer.decode_batch(drawn)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(self.prompts, texts, strict=True)]

    def flops(self, batch: Batch) -> int:
        rows, length = batch["ids"].shape
        head = self.module.head.weight.numel()
        spared = 0
        if self.masked_share:  # the head sees hidden tokens alone
            masked, _ = self._parts(batch)
            spared = len(batch["ids"][masked]) * (length - batch["masked_at"].shape[1])
        documents = batch["given"].shape[:2].numel() if "given" in batch else 0
        words = 12 * documents * head  # into the embedding and out of the head
        if "passages" in batch:  # the head sees the last token alone
            *counts, tokens = batch["passages"].shape
            words += math.prod(counts) * (tokens * (self.module.flops_per_token(tokens) - 6 * head) + 6 * head)
        if batch["targets"].device.type == "cpu":  # `linear_cross_entropy` skips what is not learnt there
            spared += int((batch["targets"][self._parts(batch)[1]] < 0).sum())
        return rows * length * self.module.flops_per_token(length) - 6 * spared * head + words


def _packing(batch: Batch, rows: slice = slice(None)) -> dict[str, Any]:
    return {key: batch[key][rows] for key in ("doc", "pos") if key in batch}
