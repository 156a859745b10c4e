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
    """Causal language modelling of text with a GPT.

    Batches hold `ids` and `targets (B, T)`; with isolated documents also `doc` and `pos (B, T)`; with the document
    objective, `given` and `asked (B, K, W)` of `data.documents`, which needs `token_statistics (2, V)`. Where ranks
    share the held-out batches, `collect` makes of one rank's results those of all, in the order of the batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"bits_per_byte": "min", "loss": "min"}

    def __init__(
        self,
        module: GPT,
        tokenizer: Tokenizer,
        prompts: Sequence[str] = ("",),
        sample_tokens: int = 48,
        encode_prompt: Callable[[str], list[int]] | None = None,
        stop_ids: Iterable[int] | None = None,
        document_weight: float = 0.0,
        token_statistics: Tensor | None = None,
        collect: Callable[[list[Tensor]], list[Tensor]] = list,
    ) -> None:
        self.module, self.tokenizer, self._collect = module, tokenizer, collect
        self.prompts, self.sample_tokens = list(prompts), sample_tokens
        self.encode_prompt = encode_prompt or (lambda prompt: tokenizer.encode(prompt).ids)
        self.stop_ids = stop_ids
        self.document_weight, self._token_statistics = document_weight, token_statistics
        lengths = token_byte_lengths(tokenizer)
        padding = module.config.vocab_size - len(lengths)  # a network may have more rows than its tokenizer has tokens
        self._byte_lengths = torch.from_numpy(np.pad(lengths, (0, max(padding, 0))))

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        nats, counted = self.module.loss(batch["ids"], batch["targets"], **_packing(batch))
        if "given" not in batch:
            return {"loss": (nats, counted)}
        assert self._token_statistics is not None
        weight, log_prior = self._token_statistics.to(nats.device)
        given, asked = (batch[key].flatten(0, 1) for key in ("given", "asked"))
        total, documents = self.module.document_loss(given, asked, weight, log_prior)
        both = nats + self.document_weight * total / documents.clamp(min=1) * counted  # a mean beside a mean
        return {"loss": (both, counted), "next_token": (nats, counted)}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Bits per UTF-8 byte and nats per token (`loss`), with intervals over rows.

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
            scores.append(torch.stack(rows).cpu())
        module.train(was_training)
        table = torch.cat(self._collect(scores)).double().numpy()
        nats, counted, text_nats, text_bytes = table[table[:, 1] > 0].T  # without a target a row only filled a batch up
        if not text_bytes.sum():
            raise InputError("the text to evaluate on is shorter than two tokens; give more text")
        return {
            "bits_per_byte": ratio_interval(text_nats / math.log(2), text_bytes),
            "loss": ratio_interval(nats, counted),
        }

    def _score(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(nats, counted tokens, nats of text tokens, bytes of text) `(4,)` of one row: only its logits are held."""
        losses = cross_entropy_by_token(self.module.head(hidden), targets)
        counted = targets >= 0
        lengths = self._byte_lengths.to(targets.device)[targets.clamp(min=0)] * counted
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
        documents = batch["given"].shape[:2].numel() if "given" in batch else 0
        words = 12 * documents * self.module.head.weight.numel()  # into the embedding and out of the head
        targets, head = batch["targets"], self.module.head.weight.numel()
        unread = int((targets < 0).sum()) if targets.device.type == "cpu" else 0  # `linear_cross_entropy` skips them
        return rows * length * self.module.flops_per_token(length) + words - 6 * head * unread


def _packing(batch: Batch) -> dict[str, Any]:
    return {key: batch[key] for key in ("doc", "pos") if key in batch}
