"""DALL-E: a text, then an image's codes, as one sequence that is read and written from left to right (2102.12092)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.image_tokenizer import ImageTokenizer
from bedplate.models.sampling import GREEDY, distribution
from bedplate.models.sampling import draw as draw_index
from bedplate.nn.cache import Cache
from bedplate.nn.config import TrunkConfig
from bedplate.nn.heads import LinearCrossEntropy, cross_entropy_by_token
from bedplate.nn.span import Span
from bedplate.nn.trunk import Trunk, matrix_flops


@dataclass(frozen=True, slots=True)
class DalleConfig:
    """The shape of a model that draws.

    Attributes:
        vocab_size: tokens of the text's vocabulary.
        text_length: tokens of a text, the end token included; shorter ones are filled up with it.
        end_token_id: what ends a text. A text of end tokens alone says nothing: what is drawn then is any image.
        grid: (rows, columns) of an image's codes.
        codebook_size: how many codes there are.
    """

    vocab_size: int
    text_length: int
    end_token_id: int
    grid: tuple[int, int]
    codebook_size: int
    trunk: TrunkConfig

    def __post_init__(self) -> None:
        if not 0 <= self.end_token_id < self.vocab_size:
            raise InputError(f"end_token_id={self.end_token_id} is no token of a vocabulary of {self.vocab_size}")

    @property
    def codes(self) -> int:
        """Codes of an image."""
        return self.grid[0] * self.grid[1]


class Dalle(nn.Module):
    """Text tokens, a token that begins the image, then its codes row by row; each state foretells the next code.

    All rows of a batch are as long, and padding is part of the text: no mask is needed, neither for training nor
    behind a cache. A code enters with the row and the column of the code that it foretells.
    """

    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        c = self.config = config
        d = c.trunk.hidden_size
        self.embed = nn.Embedding(c.vocab_size, d)
        self.begin = nn.Parameter(torch.zeros(d))
        self.code_embed = nn.Embedding(c.codebook_size, d)
        self.rows = nn.Embedding(c.grid[0], d)
        self.columns = nn.Embedding(c.grid[1], d)
        self.dropout = nn.Dropout(c.trunk.dropout) if c.trunk.dropout else nn.Identity()
        self.trunk = Trunk(c.trunk)
        self.head = nn.Linear(d, c.codebook_size, bias=False)
        self.cross_entropy = LinearCrossEntropy()

    @property
    def device(self) -> torch.device:
        return self.begin.device

    def forward(self, ids: Tensor, codes: Tensor) -> Tensor:
        """Logits `(B, N, K)` of each of an image's codes from those before it; `ids (B, L)`, `codes (B, N)`."""
        return self.head(self._hidden(ids, codes))

    def loss(self, ids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(summed negative log-likelihood of `codes (B, N)` in nats, number counted) under texts `ids (B, L)`."""
        return self.cross_entropy(self._hidden(ids, codes), self.head.weight, codes)

    def nats(self, ids: Tensor, codes: Tensor) -> Tensor:
        """The negative log-likelihood `(B,)` in nats of each image's codes."""
        return cross_entropy_by_token(self(ids, codes), codes).sum(1)

    def without_text(self, ids: Tensor) -> Tensor:
        """Texts `(B, L)` that say nothing."""
        return torch.full_like(ids, self.config.end_token_id)

    def _hidden(self, ids: Tensor, codes: Tensor) -> Tensor:
        """States `(B, N, D)` that foretell the codes."""
        x = torch.cat([self._text(ids), self._before(codes[:, :-1])], 1)
        return self.trunk(Span.causal(self.dropout(x)))[:, self.config.text_length :]

    def _text(self, ids: Tensor) -> Tensor:
        """A text's tokens as the trunk reads them, filled up: `(B, L)` to `(B, text_length, D)`."""
        missing = self.config.text_length - ids.shape[1]
        assert missing >= 0, f"texts of {ids.shape[1]} tokens, where {self.config.text_length} are read"
        return self.embed(F.pad(ids, (0, missing), value=self.config.end_token_id))

    def _before(self, codes: Tensor) -> Tensor:
        """What stands before the codes from the first to the one behind `codes (B, K)`, `(B, K + 1, D)`."""
        begin = self.begin.expand(len(codes), 1, -1)
        return torch.cat([begin, self.code_embed(codes)], 1) + self._places(0, codes.shape[1] + 1)

    def _places(self, start: int, stop: int) -> Tensor:
        """The embedded rows and columns `(stop - start, D)` of some codes of an image."""
        at = torch.arange(start, stop, device=self.device)
        columns = self.config.grid[1]
        return self.rows(at // columns) + self.columns(at % columns)

    @torch.inference_mode()
    def draw(
        self,
        ids: Tensor,
        seeds: Sequence[int],
        *,
        guidance: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        prefix: Tensor | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Draw an image for each text, all at once; the module must be in evaluation mode.

        An image depends on its text, its seed and the settings, not on those beside it.

        Args:
            ids: texts `(B, L)`, each with its end token, filled up with it.
            seeds: of each image.
            guidance: how far to go from what is drawn without a text to what is drawn with it, and beyond (classifier-
                free guidance, arXiv 2207.12598): 1 is the model as it is. Other values take both in one batch.
            temperature: divides the logits; 0 takes the most likely code each time.
            top_k: draw from so many codes only.
            prefix: codes `(K,)` with which every image begins, row by row.
            cache: keep keys and values of what was read; without it all of it is read again for each code.

        Returns:
            Codes `(B, rows, columns)` int64.

        Raises:
            InputError: a setting outside of its range.
        """
        assert not self.training, "call module.eval() first: dropout has no place in drawing"
        _check_settings(guidance, temperature, top_k)
        c, count = self.config, len(ids)
        assert len(seeds) == count, f"{len(seeds)} seeds for {count} images"
        codes = torch.zeros(count, 0, dtype=torch.long, device=self.device)
        if prefix is not None:
            codes = prefix.to(self.device).expand(count, -1)
        if not count or codes.shape[1] >= c.codes:
            return codes[:, : c.codes].reshape(count, *c.grid)
        guided = guidance != 1
        text = self._text(torch.cat([ids, self.without_text(ids)]) if guided else ids)
        generators = [random.Random(seed) for seed in seeds]
        kept = self.trunk.make_cache(len(text), c.text_length + c.codes) if cache else None
        while codes.shape[1] < c.codes:
            logits = self.head(self._next(text, codes.repeat(2, 1) if guided else codes, kept)).float()
            if guided:
                given, free = logits.chunk(2)
                logits = free + guidance * (given - free)
            codes = torch.cat([codes, _choose(logits, generators, temperature, top_k)], 1)
        return codes.view(count, *c.grid)

    def _next(self, text: Tensor, codes: Tensor, cache: Cache | None) -> Tensor:
        """The state `(B, D)` that foretells the code behind `codes (B, K)`."""
        read = 0 if cache is None else cache.length
        if not read:
            return self.trunk(Span.causal(torch.cat([text, self._before(codes)], 1)), cache)[:, -1]
        done = codes.shape[1]
        x = self.code_embed(codes[:, -1:]) + self._places(done, done + 1)
        return self.trunk(Span.causal(x, torch.arange(read, read + 1, device=x.device)), cache)[:, -1]

    def flops_per_image(self) -> int:
        """Training FLOPs an image, its text included."""
        c = self.config
        length = c.text_length + c.codes
        return length * self.trunk.flops_per_token(length) + c.codes * matrix_flops(self.head.weight)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name, as in `models.gpt`: blocks begin as the identity, embeddings and the head small."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                yield name, torch.ones(parameter.shape)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                yield name, torch.zeros(parameter.shape)
            else:
                std = 1 / math.sqrt(parameter.shape[1]) if name.startswith("trunk.") else 0.02
                yield name, torch.randn(parameter.shape, generator=generator) * std


class Painter(nn.Module):
    """What draws by codes, and what makes pixels of these."""

    def __init__(self, dalle: Dalle, image_tokens: ImageTokenizer) -> None:
        super().__init__()
        if (dalle.config.grid, dalle.config.codebook_size) != (image_tokens.config.grid, image_tokens.codebook_size):
            raise InputError(
                f"the image tokenizer has {image_tokens.config.grid} of {image_tokens.codebook_size} codes, and what "
                f"draws by them {dalle.config.grid} of {dalle.config.codebook_size}; they are of different models"
            )
        self.dalle, self.image_tokens = dalle, image_tokens

    @property
    def device(self) -> torch.device:
        return self.dalle.device


def _choose(logits: Tensor, generators: list[random.Random], temperature: float, top_k: int | None) -> Tensor:
    """A code of each image `(B, 1)` by its own generator."""
    if temperature < GREEDY:
        return logits.argmax(-1, keepdim=True)
    weights, ids = distribution(logits, temperature, top_k, None)
    uniform = torch.tensor([[1 - each.random()] for each in generators], device=logits.device)
    index = draw_index(weights, uniform)
    return index if ids is None else ids.gather(1, index)


def _check_settings(guidance: float, temperature: float, top_k: int | None) -> None:
    if not 0 <= guidance < math.inf:
        raise InputError(f"guidance={guidance} must be 0 (the text is ignored), 1 (as learnt) or more")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature={temperature} must be 0 (the likeliest code) or a positive number")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k={top_k} must be at least 1, or left out to keep all codes")
