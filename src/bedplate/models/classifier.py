"""Classifier: a text model and a linear score of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bedplate.models.gpt import GPTConfig, TextModel

Pooling = Literal["mean", "last"]


class Classifier(TextModel):
    """Token ids in, a logit for each label out.

    With pooling "last" the score reads the hidden state of a text's last token, which is `transformers`'
    `...ForSequenceClassification`. With "mean" each token has scores and their mean decides, which is its
    `...ForTokenClassification` and a mean.
    """

    def __init__(self, config: GPTConfig, labels: Sequence[str], pooling: Pooling = "last") -> None:
        super().__init__(config)
        self.labels, self.pooling = list(labels), pooling
        self.score = nn.Linear(config.trunk.hidden_size, len(labels), bias=pooling == "mean")  # as theirs have it

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits `(B, C)` of `ids (B, N)`, whose rows end after `lengths (B,)` tokens and are padded from there."""
        valid = None
        if lengths is None:
            lengths = torch.full((len(ids),), ids.shape[1], device=ids.device)
        else:
            valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if self.pooling == "last":
            return self.score(self.hidden(ids, valid=valid, right_padded=True, at=lengths - 1)[:, 0])
        hidden = self.hidden(ids, valid=valid, right_padded=True)
        if valid is None:
            return self.score(hidden.mean(1))
        kept = valid[..., None].to(hidden.dtype)
        return self.score((hidden * kept).sum(1) / kept.sum(1))  # the mean of scores is the score of the mean

    @staticmethod
    def of(
        base: TextModel,
        labels: Sequence[str],
        pooling: Pooling = "last",
        *,
        dropout: float | None = None,
        is_causal: bool | None = None,
    ) -> Classifier:
        """A classifier with a copy of the base model's weights, and a score that says nothing yet."""
        config = base.config
        if dropout is not None:
            config = replace(config, trunk=replace(config.trunk, dropout=dropout))
        if is_causal is not None:
            config = replace(config, is_causal=is_causal)
        classifier = Classifier(config, labels, pooling)
        weights = {name: value for name, value in base.state_dict().items() if not name.startswith(("head.", "score."))}
        absent, unknown = classifier.load_state_dict(weights, strict=False)
        assert all(name.startswith("score.") for name in absent) and not unknown, (absent, unknown)
        for parameter in classifier.score.parameters():
            nn.init.zeros_(parameter)
        return classifier.to(base.embed.weight.device)
