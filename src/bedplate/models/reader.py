"""Reader: a picture, then text about it. It writes captions and answers questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.beam import generate
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.models.vit import VisionConfig, VisionModel, fresh_weight
from bedplate.nn.cache import Cache
from bedplate.nn.heads import IGNORE
from bedplate.nn.span import Span

Connector = Literal["linear", "mlp"]


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """The shape of a reader.

    Attributes:
        language: a causal model; its context holds the picture's tokens, then a question and its answer.
        connector: what brings the vision model's states to the language model's width: "linear", one product
            (PaliGemma, arXiv 2407.07726); "mlp", two with a GELU between them (LLaVA-1.5, arXiv 2310.03744).
        places: behind the connector a learnt vector is added for each place of the picture. Rotary positions count
            patches row by row, which tells above from below and not left from right.
    """

    vision: VisionConfig
    language: GPTConfig
    connector: Connector = "linear"
    places: bool = True

    def __post_init__(self) -> None:
        if not self.language.is_causal:
            raise InputError(f"a reader writes, and its language model ({self.language.family}) does not; give a GPT")
        if self.context < 2:
            raise InputError(
                f"a picture is {self.picture} tokens, and the language model's context holds "
                f"{self.language.max_position_embeddings}, text included; give a longer one, or larger patches"
            )

    @property
    def picture(self) -> int:
        """Tokens of a picture: the class token and the patches."""
        rows, columns = self.vision.grid
        return 1 + rows * columns

    @property
    def context(self) -> int:
        """Tokens of a question and its answer at most."""
        return self.language.max_position_embeddings - self.picture


class Places(nn.Module):
    """Adds a learnt vector to each token of a picture, `(B, N, D) -> (B, N, D)`."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Reader(nn.Module):
    """One `Span` of a picture and texts about it.

    The picture is a run of step 0, which all of it sees, of document 0, which all texts see; the texts are a run of
    step 1, one document each. Its patches have their places from the vision model and the connector; for the rotary
    positions the picture comes first, and each text goes on behind it.
    """

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        inner, width = config.vision.trunk.hidden_size, config.language.trunk.hidden_size
        self.vision = VisionModel(config.vision)
        # No norm: the vision model's trunk ends with one.
        layers: list[nn.Module] = [nn.Linear(inner, width)]
        if config.connector == "mlp":
            layers += [nn.GELU(), nn.Linear(width, width)]
        if config.places:
            layers.append(Places(config.picture, width))
        self.connector = nn.Sequential(*layers)
        self.language = GPT(config.language)

    @property
    def device(self) -> torch.device:
        return self.vision.device

    def tie_weights(self) -> None:
        """See `GPT.tie_weights`."""
        self.language.tie_weights()

    def forward(self, pixels: Tensor, ids: Tensor, **options: Any) -> Tensor:
        """Logits `(B, L, V)` over the next token of `ids (B, L)`, texts about `pixels`; see `hidden`."""
        return self.language.head(self.hidden(pixels, ids, **options))

    def look(self, pixels: Tensor) -> Tensor:
        """Pictures as the language model gets them `(B, N, D)`, of normalised pixels `(B, C, H, W)`."""
        picture = self.connector(self.vision.hidden(pixels))
        return picture.to(self.language.embed.weight.dtype)  # beside text, under autocast too

    def hidden(
        self,
        pixels: Tensor,
        ids: Tensor,
        *,
        pos: Tensor | None = None,
        doc: Tensor | None = None,
        valid: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states `(B, L, D)` of texts `ids (B, L)`, each row about one of `pixels (B, C, H, W)`.

        Args:
            pos: of each token in its text `(B, L)`; by default a row is one text.
            doc: texts of a row by number, 1 or more `(B, L)`; they do not see each other.
            valid: False on padding `(B, L)`.
            at: the tokens of each row `(B, K)` whose states are wanted; the result is `(B, K, D)` then.
        """
        picture, (batch, length), device = self.look(pixels), ids.shape, ids.device
        n = picture.shape[1]
        places = torch.arange(n, device=device)
        text = torch.arange(length, device=device) if pos is None else pos
        pos = torch.cat([places.expand(*text.shape[:-1], -1), n + text], -1)
        x = torch.cat([picture, self.language.embed(ids)], 1)
        span = Span(
            self.language.placed(x, pos),
            pos,
            runs=((n, 0), (length, 1)),
            valid=None if valid is None else torch.cat([valid.new_ones(batch, n), valid], 1),
            doc=None if doc is None else torch.cat([doc.new_zeros(batch, n), doc], 1),
        )
        if at is not None:
            return self.language.trunk(span, at=n + at)
        return self.language.trunk(span)[:, n:]

    def loss(self, pixels: Tensor, ids: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """(summed negative log-likelihood in nats, number counted) of `targets (B, L)`, those that are not `IGNORE`.

        Options are those of `hidden`.
        """
        at, targets = answered(targets)
        hidden = self.hidden(pixels, ids, at=at, **options)
        return self.language.cross_entropy(hidden, self.language.head.weight, targets)

    def seen(self, pixels: Tensor) -> Cache:
        """The keys and values of pictures `(B, C, H, W)`, which `generate` and `log_likelihood` go on from."""
        x = self.look(pixels)
        n = x.shape[1]
        cache, pos = self.language.trunk.make_cache(len(x), n), torch.arange(n, device=x.device)
        self.language.trunk(Span.full(self.language.placed(x, pos), pos), cache)
        return cache

    def generate(self, seen: Cache, prompts: list[list[int]], **options: Any) -> list[list[int]]:
        """Texts, without their prompts; prompts may differ in length.

        Args:
            seen: of each prompt's picture, see `seen`; `Cache.repeated` gives one picture to several prompts.
            options: those of `models.beam.generate`.
        """
        return generate(self.language, prompts, before=seen, **options)

    def log_likelihood(self, seen: Cache, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> Tensor:
        """Log-probability `(B,)` in nats, fp32, of each text (at least one token) behind its prompt and picture."""
        rows = [[*prompt, *text[:-1]] for prompt, text in zip(prompts, texts, strict=True)]
        longest, device = max(map(len, rows)), self.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        targets = torch.full_like(ids, IGNORE)
        for row, prompt, text in zip(targets, prompts, texts, strict=True):
            row[len(prompt) - 1 :][: len(text)] = torch.tensor(text, device=device)
        valid = torch.arange(longest, device=device) < torch.tensor([[len(row)] for row in rows], device=device)
        cache = seen.repeated(1, seen.length + longest)
        hidden = self.language.hidden(ids, valid=valid, right_padded=True, cache=cache)
        kept = targets != IGNORE
        logs = self.language.head(hidden[kept]).float().log_softmax(-1)
        found = logs.gather(1, targets[kept][:, None])[:, 0]
        owner = torch.arange(len(rows), device=device)[:, None].expand_as(ids)[kept]
        return torch.zeros(len(rows), device=device).index_add_(0, owner, found)

    def flops(self, pictures: int, length: int) -> int:
        """Training FLOPs, forward and backward, of pictures with rows of text of `length` tokens; blocks in full."""
        n, language = self.config.picture, self.language
        products = sum(layer.weight.numel() for layer in self.connector if isinstance(layer, nn.Linear))
        row = (n + length) * language.trunk.flops_per_token(n + length) + 6 * n * products
        return pictures * (self.vision.flops_per_image() + row)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name: those of a `VisionModel`, of a `GPT`, and between them `models.vit.fresh_weight`s."""
        yield from ((f"vision.{name}", value) for name, value in self.vision.initial_weights(seed))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.connector.named_parameters():
            yield f"connector.{name}", fresh_weight(name, parameter.shape, generator)
        yield from ((f"language.{name}", value) for name, value in self.language.initial_weights(seed))

    @torch.no_grad()
    def with_places(self) -> Reader:
        """This reader, or one with its weights and places that begin at zero, which computes the same."""
        if self.config.places:
            return self
        reader = Reader(replace(self.config, places=True))
        places = reader.connector[-1]
        assert isinstance(places, Places)
        places.weight.zero_()
        reader.load_state_dict(reader.state_dict() | self.state_dict())
        reader.tie_weights()
        return reader.to(self.device)

    @staticmethod
    def of(
        vision: VisionModel,
        language: GPT,
        *,
        connector: Connector = "linear",
        image_size: tuple[int, int] | None = None,
        seed: int = 0,
    ) -> Reader:
        """A reader with copies of models that were trained before, and a fresh connector.

        Args:
            image_size: of the pictures, to which the vision model's positions are interpolated.
        """
        if image_size is not None and image_size != vision.config.image_size:
            vision = vision.with_image_size(image_size)
        reader = Reader(ReaderConfig(vision.config, language.config, connector))
        reader.init_weights(seed)
        reader.vision.load_state_dict({name: vision.state_dict()[name] for name in reader.vision.state_dict()})
        reader.language.load_state_dict(language.state_dict())
        return reader.to(vision.device)


def answered(targets: Tensor) -> tuple[Tensor | None, Tensor]:
    """(places `(B, K)` of the tokens whose next one counts, those next ones `(B, K)`) of `targets (B, L)`.

    What the last block and the head compute elsewhere is for nothing. On an accelerator (None, all): to count them
    there would stall it.
    """
    if targets.device.type != "cpu":
        return None, targets
    ignored = targets == IGNORE
    most = int((~ignored).sum(1).max())
    at = ignored.byte().sort(dim=1, stable=True).indices[:, : max(most, 1)]
    return at, targets.gather(1, at)
