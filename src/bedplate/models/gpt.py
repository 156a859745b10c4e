"""GPT: a causal language model in the GPT-2, Llama or Qwen3 shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.nn.block import make_norm
from bedplate.nn.cache import Cache
from bedplate.nn.config import TrunkConfig
from bedplate.nn.heads import LinearCrossEntropy
from bedplate.nn.presets import ENCODERS, default_intermediate_size, trunk_options
from bedplate.nn.span import Span
from bedplate.nn.trunk import Trunk, matrix_flops

DOCUMENT_TEMPERATURE = 4.0  # some words foretell the others less surely than a text its next token


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """Family names are `model_type` in a `transformers` config file: gpt2, llama, qwen3, bert or modernbert."""

    family: str
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    trunk: TrunkConfig
    is_causal: bool = True  # False: every token sees all of its text, as in an encoder
    type_vocab_size: int = 0  # kinds of segments that a token may be of (BERT); 0: there are none
    embed_norm: bool = False  # whether a norm follows the embeddings

    @property
    def is_encoder(self) -> bool:
        """Whether the family fills blanks (BERT) and does not write on (GPT)."""
        return self.family in ENCODERS

    @staticmethod
    def from_preset(
        preset: str,
        *,
        vocab_size: int,
        max_position_embeddings: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int | None = None,
        tie_word_embeddings: bool = True,
        **options: Any,
    ) -> GPTConfig:
        """Sizes left out follow the family: key-value heads = heads, head_dim = D / heads, the usual MLP width."""
        if head_dim is None and hidden_size % num_attention_heads:
            raise InputError(
                f"model.hidden_size={hidden_size} is not a multiple of model.num_attention_heads={num_attention_heads}"
                "; change one of them or give model.head_dim"
            )
        trunk = TrunkConfig(
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads or num_attention_heads,
            head_dim=head_dim or hidden_size // num_attention_heads,
            intermediate_size=intermediate_size or default_intermediate_size(preset, hidden_size),
            **{**trunk_options(preset, num_hidden_layers), **options},
        )
        whole = GPTConfig(preset, vocab_size, max_position_embeddings, tie_word_embeddings, trunk)
        if preset in ENCODERS:
            whole = replace(whole, is_causal=False, embed_norm=True, type_vocab_size=2 if preset == "bert" else 0)
        return whole


class TextModel(nn.Module):
    """Token ids in, hidden states out: what models of text share."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        c = self.config = config
        d = c.trunk.hidden_size
        self.embed = nn.Embedding(c.vocab_size, d)
        # Where the trunk has no rotary positions, they are learned.
        self.positions = nn.Embedding(c.max_position_embeddings, d) if c.trunk.rope is None else None
        self.types = nn.Embedding(c.type_vocab_size, d) if c.type_vocab_size else None
        self.embed_norm = make_norm(c.trunk) if c.embed_norm else nn.Identity()
        self.dropout = nn.Dropout(c.trunk.dropout) if c.trunk.dropout else nn.Identity()
        self.trunk = Trunk(c.trunk)

    def hidden(
        self,
        ids: Tensor,
        *,
        pos: Tensor | None = None,
        doc: Tensor | None = None,
        valid: Tensor | None = None,
        right_padded: bool = False,
        cache: Cache | None = None,
        at: Tensor | None = None,
        is_causal: bool | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states `(B, N, D)` of `ids (B, N)`.

        Args:
            pos: positions `(N,)` or `(B, N)`; by default they go on from the cache's length.
            doc: document numbers `(B, N)` of packed rows; documents do not see each other, all see document 0.
            at: the tokens of each row `(B,)` or `(B, K)` whose states are wanted; the result is `(B, K, D)` then.
            valid: False on padding `(B, N)`; `right_padded` promises that padding ends each row, which needs no mask.
            is_causal: False: every token sees all of its text, True: what stands before it; by default as configured.
            types: segments `(B, N)` of a model that has `type_vocab_size` of them; by default 0.
        """
        start, n = (cache.length if cache else 0), ids.shape[1]
        if pos is None:
            if self.positions is not None and start + n > self.positions.num_embeddings:
                raise InputError(
                    f"{start + n} tokens do not fit into this model's {self.positions.num_embeddings} learned positions"
                    "; shorten the text"
                )
            pos = torch.arange(start, start + n, device=ids.device)
        x = self.placed(self.embed(ids), pos, types)
        if self.config.is_causal if is_causal is None else is_causal:
            return self.trunk(Span.causal(x, pos, valid=valid, doc=doc, right_padded=right_padded), cache, at)
        return self.trunk(Span.full(x, pos, valid=valid, doc=doc), cache, at)

    def placed(self, x: Tensor, pos: Tensor, types: Tensor | None = None) -> Tensor:
        """What enters the trunk `(B, N, D)`: embeddings of tokens, or what stands in for some, at their positions."""
        if self.positions is not None:
            x = x + self.positions(pos)
        assert types is None or self.types is not None, "this model has no types"
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        return self.dropout(self.embed_norm(x))

    def flops_per_token(self, length: int) -> int:
        """Training FLOPs a token at rows of `length` tokens, a large head included."""
        return self.trunk.flops_per_token(length)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name, one by one, also for a module on the meta device.

        GPT-2 keeps its own: normal 0.02, residual outputs 0.02 / sqrt(2 L), zero biases. The others start as the
        identity: matrices normal 1 / sqrt(fan_in), outputs into the residual stream zero, so that every block begins as
        a no-op and depth does not set the scale; embeddings normal 0.02, which gives a tied head near-uniform first
        predictions; a classifier's score is zero. Norm gains are 1. BERT keeps its own, too: normal 0.02 throughout.
        """
        generator = torch.Generator().manual_seed(seed)
        gpt2, bert = self.config.family == "gpt2", self.config.family == "bert"
        for name, shape in [(name, parameter.shape) for name, parameter in self.named_parameters()]:
            if len(shape) < 2:
                yield name, torch.full(shape, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            if name == "score.weight":
                std = 0.0
            elif bert:
                std = 0.02
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                std = 0.02 / math.sqrt(2 * self.config.trunk.num_hidden_layers) if gpt2 else 0.0
            elif gpt2 or name.startswith(("embed", "positions", "head")):
                std = 0.02
            else:
                std = 1 / math.sqrt(shape[1])
            yield name, torch.randn(shape, generator=generator) * std


class GPT(TextModel):
    """Token ids in, logits over the next token out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.head = nn.Linear(config.trunk.hidden_size, config.vocab_size, bias=False)
        self.cross_entropy = LinearCrossEntropy()
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the head share the embedding's weight where the config says so."""
        if self.config.tie_word_embeddings:
            self.head.weight = self.embed.weight

    def with_dropout(self, dropout: float) -> GPT:
        """The same network and weights with another dropout."""
        config = replace(self.config, trunk=replace(self.config.trunk, dropout=dropout))
        copy = GPT(config)
        copy.load_state_dict(self.state_dict())
        return copy.to(self.embed.weight.device)

    def forward(self, ids: Tensor, **options: Any) -> Tensor:
        """Logits `(B, N, V)`; options are those of `hidden`."""
        return self.head(self.hidden(ids, **options))

    def loss(self, ids: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """(summed negative log-likelihood of `targets (B, N)` in nats, number counted); see `linear_cross_entropy`."""
        return self.cross_entropy(self.hidden(ids, **options), self.head.weight, targets)

    def masked_loss(self, ids: Tensor, at: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """(summed negative log-likelihood in nats, number counted) of `targets (B, K)` from the states at `at (B, K)`.

        Every token sees all of its text, in which some are hidden; head and last block are computed at `at` alone. With
        `at` one place before each target, generation and filling in use the same weights alike: masked next-token
        prediction (GPT-BERT, arXiv 2410.24159).
        """
        hidden = self.hidden(ids, is_causal=False, at=at, **options)
        return self.cross_entropy(hidden, self.head.weight, targets)

    def document_loss(self, given: Tensor, asked: Tensor, weight: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        """(sum over documents of the mean nats by which `given` words predict those `asked` for, documents counted).

        A document's given words are one token, the mean of their embeddings, that passes the final norm and the head:
        the trunk takes no part, so a step sees hundreds of documents for the price of a few rows. It teaches the
        embeddings what words keep company in a document, as paragraph vectors do (PV-DBOW, arXiv 1405.4053), where
        next-token prediction needs far more text. Nothing is added to the network.

        Args:
            given: distinct token ids `(N, W)` of each document, padded with -1.
            asked: the document's other ids `(N, U)`, padded with -1.
            weight: of each token `(V,)`; see `data.documents.token_statistics`.
            log_prior: log-probability of each token `(V,)` where nothing is given.
        """
        shown = _bags(given, weight)
        hidden = self.trunk.norm(shown @ self.embed.weight[: len(weight)])
        return self._foretold(hidden, asked, weight, log_prior, shown.sum(1) > 0)

    def passage_loss(
        self, passages: Tensor, others: Tensor, weight: Tensor, log_prior: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum over passages of the mean nats by which the last state foretells `others`, passages counted).

        A passage is read by the whole network, from left to right and alone, and the state of its last token, which is
        what a classifier scores, passes the head: what a passage says of its document has to be in that one state. The
        next token's loss alone does not put it there.

        Args:
            passages: token ids in order `(N, L)`, padded at their end with -1.
            others: distinct ids `(N, U)` of the passage's document that are not in the passage, padded with -1.
            weight, log_prior: as for `document_loss`.
        """
        at = (passages >= 0).sum(1).clamp(min=1) - 1
        hidden = self.hidden(passages.clamp(min=0), is_causal=True, right_padded=True, at=at)[:, 0]
        return self._foretold(hidden, others, weight, log_prior, passages[:, 0] >= 0)

    def _foretold(
        self, hidden: Tensor, ids: Tensor, weight: Tensor, log_prior: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(sum over rows of the mean nats by which `hidden (N, D)` foretells distinct `ids (N, U)`, rows counted)."""
        wanted = _bags(ids, weight)
        logits = self.head(hidden)[:, : len(weight)].float() / DOCUMENT_TEMPERATURE
        nats = -((logits + log_prior).log_softmax(1) * wanted).sum(1)
        counted = counted & (wanted.sum(1) > 0)
        return (nats * counted).sum(), counted.sum()

    def flops_per_token(self, length: int) -> int:
        return super().flops_per_token(length) + matrix_flops(self.head.weight)


def _bags(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of token ids `(N, W)` as shares of their weight `(N, V)`; a row without weight stays zero."""
    bags = weight.new_zeros(len(ids), len(weight) + 1)  # the last column takes the padding
    bags = bags.scatter_(1, ids % bags.shape[1], 1.0)[:, :-1] * weight
    return bags / bags.sum(1, keepdim=True).clamp(min=1e-6)
