"""Classifier: a text model and a linear score of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.bert import Pooler, Transform
from bedplate.models.gpt import GPTConfig, TextModel

Pooling = Literal["mean", "last", "cls"]


class Classifier(TextModel):
    """Token ids in, a logit for each label out.

    With pooling "last" the score reads the hidden state of a text's last token, which is `transformers`'
    `...ForSequenceClassification`. With "mean" each token has scores and their mean decides, which is its
    `...ForTokenClassification` and a mean. An encoder's score reads its first token, with "cls", through BERT's pooler
    or ModernBERT's transform; ModernBERT has "mean" in this form, too.
    """

    def __init__(self, config: GPTConfig, labels: Sequence[str], pooling: Pooling = "last") -> None:
        super().__init__(config)
        if pooling == ("last" if config.is_encoder else "cls"):
            raise InputError(
                f"pooling={pooling!r} is not for a {config.family} model; choose "
                + ("cls or mean" if config.is_encoder else "last or mean")
            )
        self.labels, self.pooling = list(labels), pooling
        self.pooler = Pooler(config) if config.family == "bert" and pooling == "cls" else nn.Identity()
        self.transform = Transform(config) if config.family == "modernbert" else nn.Identity()
        self.score = nn.Linear(config.trunk.hidden_size, len(labels), bias=pooling != "last")  # as theirs have it

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits `(B, C)` of `ids (B, N)`, whose rows end after `lengths (B,)` tokens and are padded from there."""
        valid = None
        if lengths is None:
            lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
        else:
            valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return self.score(self.transform(self.pooler(self._pooled(ids, lengths, valid))))

    def _pooled(self, ids: Tensor, lengths: Tensor, valid: Tensor | None) -> Tensor:
        if self.pooling != "mean":
            at = lengths - 1 if self.pooling == "last" else torch.zeros_like(lengths)
            return self.hidden(ids, valid=valid, right_padded=True, at=at)[:, 0]
        hidden = self.hidden(ids, valid=valid, right_padded=True)
        if valid is None:
            return hidden.mean(1)
        kept = valid[..., None].to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1)  # the mean of scores is the score of the mean

    @staticmethod
    def of(
        base: TextModel,
        labels: Sequence[str],
        pooling: Pooling | None = None,
        *,
        dropout: float | None = None,
        is_causal: bool | None = None,
    ) -> Classifier:
        """A classifier with a copy of the base model's weights, and a score that says nothing yet.

        By default it reads the token that has seen all: an encoder's first, the last otherwise. A base that is a
        classifier is read as before by default, and keeps its scores if the labels are the same in the same order.

        Raises:
            InputError: the base's family has no such pooling, or no causal attention.
        """
        config = base.config
        if is_causal and config.is_encoder:
            raise InputError(
                f"attention=causal is not for a {config.family} model, which sees all of a text; leave it out"
            )
        if dropout is not None:
            config = replace(config, trunk=replace(config.trunk, dropout=dropout))
        if is_causal is not None:
            config = replace(config, is_causal=is_causal)
        before = base if isinstance(base, Classifier) else None
        pooling = pooling or (before.pooling if before else "cls" if config.is_encoder else "last")
        classifier = Classifier(config, labels, pooling)
        goes_on = before is not None and (before.labels, before.pooling) == (classifier.labels, pooling)
        left = "head." if goes_on else ("head.", "score.")
        weights = {name: value for name, value in base.state_dict().items() if not name.startswith(left)}
        absent, unknown = classifier.load_state_dict(weights, strict=False)
        own = "score.", "pooler.", "transform."
        assert all(name.startswith(own) for name in [*absent, *unknown]), (absent, unknown)
        generator, parameters = torch.Generator().manual_seed(0), dict(classifier.named_parameters())
        for name in absent:
            if name.endswith("dense.weight"):  # of a pooler or transform that the base does not have
                nn.init.normal_(parameters[name], std=0.02, generator=generator)
            elif "norm" not in name:
                nn.init.zeros_(parameters[name])
        if not goes_on:
            for parameter in classifier.score.parameters():
                nn.init.zeros_(parameter)
        return classifier.to(base.embed.weight.device)
