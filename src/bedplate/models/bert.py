"""BERT and ModernBERT: encoders of text, and the masked language models that they are learnt as."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bedplate.models.gpt import GPT, GPTConfig, TextModel
from bedplate.nn.block import ACTIVATIONS, make_norm
from bedplate.nn.heads import LinearCrossEntropy


class Transform(nn.Module):
    """norm(act(dense(x))), `(..., D) -> (..., D)`: what stands between an encoder and its head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        d = config.trunk.hidden_size
        self.dense = nn.Linear(d, d, bias=config.family == "bert")
        self.activation = ACTIVATIONS[config.trunk.activation]
        self.norm = make_norm(config.trunk)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


class Pooler(nn.Module):
    """tanh(dense(x)): what BERT's classifiers read a text's first token through."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.trunk.hidden_size, config.trunk.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class Encoder(TextModel):
    """Token ids in, hidden states out: a BERT without a head.

    Attributes:
        pooler: what a checkpoint brought along for classifiers, used by nothing here; None where there was none.
    """

    def __init__(self, config: GPTConfig, *, pooler: bool = False) -> None:
        super().__init__(config)
        self.pooler = Pooler(config) if pooler else None

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        """Hidden states `(B, N, D)`; options are those of `hidden`."""
        return self.hidden(ids, **options)


class MaskedLM(Encoder):
    """Token ids in, logits over the token at each place out (arXiv 1810.04805, section 3.1)."""

    def __init__(self, config: GPTConfig, *, pooler: bool = False) -> None:
        super().__init__(config, pooler=pooler)
        self.transform = Transform(config)
        self.head = nn.Linear(config.trunk.hidden_size, config.vocab_size)
        self.cross_entropy = LinearCrossEntropy()
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight where the config says so."""
        if self.config.tie_word_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        """Logits `(B, N, V)`; options are those of `hidden`; with `at (B, K)` the logits there, `(B, K, V)`."""
        return self.predictions(self.hidden(ids, **options))

    def predictions(self, hidden: Tensor) -> Tensor:
        """Logits `(..., V)` of hidden states `(..., D)`."""
        return self.head(self.transform(hidden))

    def loss(self, ids: Tensor, at: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """(summed negative log-likelihood in nats of `targets (B, K)`, the tokens that stood `at (B, K)`; how many).

        The last block's queries and MLP, the transform and the head are computed at these places alone.
        """
        hidden = self.transform(self.hidden(ids, at=at, **options))
        return self.cross_entropy(hidden, self.head.weight, targets, self.head.bias)

    def flops_per_token(self, length: int) -> int:
        """As of a model that predicts every token: an upper bound where few are masked."""
        return super().flops_per_token(length) + 6 * (self.head.weight.numel() + self.transform.dense.weight.numel())


LanguageModel = GPT | MaskedLM


def language_model(config: GPTConfig) -> LanguageModel:
    """The network that a family is pre-trained as."""
    return MaskedLM(config) if config.is_encoder else GPT(config)
