"""SetDetector: objects as a set of queries that the trunk answers with the image before it (DETR, arXiv 2005.12872).

There is no second network: queries are a further run of the image's own sequence. The image's tokens do not see them;
they see the image and their group. Groups of queries in training (Group DETR, arXiv 2207.13085) and noised objects that
are to be restored (DN-DETR, arXiv 2203.01305) are documents of that sequence, so they know nothing of each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.boxes import best_detections, centred, cornered, giou, iou
from bedplate.models.detector import PRIOR, class_targets, encoder_of, head_of, varifocal
from bedplate.models.matcher import match, matching_cost
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.span import Span

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # DETR's
SHIFT, STRETCH, FLIP = 0.4, 0.4, 0.2  # how far a noised box and how often its class is off (DN-DETR, section 4.2)

Output = tuple[Tensor, Tensor]  # logits (B, Q, C), boxes (B, Q, 4)


@dataclass(frozen=True, slots=True)
class SetDetectorConfig:
    """The shape of a detector of queries.

    Attributes:
        num_queries: the most objects that it can find in an image.
        groups: groups of as many queries each; all are trained, the first one answers.
        denoising: groups of noised objects in training.
    """

    vision: VisionConfig
    num_queries: int = 100
    groups: int = 3
    denoising: int = 3

    def __post_init__(self) -> None:
        for name, least in (("num_queries", 1), ("groups", 1), ("denoising", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.vision.trunk.hidden_size % 8:
            raise InputError(
                f"hidden_size={self.vision.trunk.hidden_size} must be a multiple of 8: a query has sines and cosines "
                "of four coordinates"
            )


class BoxHead(nn.Module):
    """How a query's reference is moved: `(..., D) -> (..., 4)`, added to the logits of its coordinates."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(2))
        self.output = nn.Linear(hidden_size, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.output(x)


class SetDetector(nn.Module):
    """Pixels in, boxes out, each with a probability for every label; nothing is suppressed afterwards."""

    def __init__(self, config: SetDetectorConfig, labels: Sequence[str]) -> None:
        super().__init__()
        if not labels:
            raise InputError("a detector needs at least one label")
        self.config, self.labels = config, list(labels)
        size, count = config.vision.trunk.hidden_size, config.num_queries * config.groups
        self.encoder = VisionModel(config.vision)
        self.queries = nn.Parameter(torch.zeros(count, size))
        self.references = nn.Parameter(torch.zeros(count, 4))  # logits of centre x, centre y, width, height
        self.place = nn.Linear(size, size)
        self.noised = nn.Embedding(len(labels), size)  # what a query is told that is to be restored
        self.score = nn.Linear(size, len(labels))
        self.box = BoxHead(size)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def forward(self, pixels: Tensor) -> Output:
        """(logits `(B, Q, C)`, boxes `(B, Q, 4)` as x1 y1 x2 y2 in pixels) of normalised pixels `(B, C, H, W)`."""
        states, references = self._answer(pixels, *self._queries(len(pixels), 1))
        logits, boxes = self._read(states, references)
        return logits, cornered(boxes) * self._size()

    def losses(self, pixels: Tensor, boxes: Tensor, classes: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: (sum over the batch, weight)}: "loss" and its parts "class", "l1" and "giou".

        The weight is the number of objects, which may be 0. In training all groups count, as their mean, and the noised
        objects, as the mean of theirs; else the first group does.

        Args:
            pixels: `(B, C, H, W)`, normalised.
            boxes: `(B, M, 4)`, x1 y1 x2 y2 in pixels.
            classes: `(B, M)`, -1 for padding.
        """
        parts, weight = self.image_losses(pixels, boxes, classes)
        return {name: (part.sum(), weight.sum()) for name, part in parts.items()}

    def image_losses(self, pixels: Tensor, boxes: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """({name: sums of each image `(B,)`}, its number of objects `(B,)`); arguments as in `losses`."""
        if not self.training:
            return self.losses_of(self(pixels), boxes, classes)
        groups, targets, real = self.config.groups, centred(boxes / self._size()), classes >= 0
        contents, references, doc = self._queries(len(pixels), groups)
        asked, valid, copies = contents.shape[1], None, self.config.denoising if boxes.shape[1] else 0
        if copies:
            noised, near, own = self._noised_queries(targets, classes, copies, first_doc=groups + 1)
            contents, references = torch.cat([contents, noised], 1), torch.cat([references, near], 1)
            valid = torch.cat([torch.ones_like(doc, dtype=torch.bool), real.repeat(1, copies)], 1)
            doc = torch.cat([doc, own], 1)
        states, references = self._answer(pixels, contents, references, doc, valid)
        logits, found = self._read(states, references)
        parts = _group_losses(logits[:, :asked], found[:, :asked], targets, classes, groups, is_matched=True)
        if copies:
            rest = logits[:, asked:], found[:, asked:]
            restored = _group_losses(*rest, targets, classes, copies, is_matched=False)
            parts = {name: part + restored[name] for name, part in parts.items()}
        return _with_total(parts), real.sum(1).float()

    def losses_of(self, output: Output, boxes: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`image_losses` of what `forward` gave."""
        size = self._size()
        found, targets = centred(output[1] / size), centred(boxes / size)
        parts = _group_losses(output[0], found, targets, classes, 1, is_matched=True)
        return _with_total(parts), (classes >= 0).sum(1).float()

    @torch.no_grad()
    def detect(self, pixels: Tensor, threshold: float = 0.05, most: int = 100) -> list[dict[str, Tensor]]:
        """Detections of each image of normalised pixels `(B, C, H, W)`, best first, boxes in pixels of the canvas.

        Each is {"boxes" (K, 4), "scores" (K,), "classes" (K,)}.
        """
        return self.found_in(self(pixels), threshold, most)

    def found_in(self, output: Output, threshold: float = 0.05, most: int = 100) -> list[dict[str, Tensor]]:
        """`detect` of what `forward` gave."""
        size = self.config.vision.image_size
        return best_detections(output[0].sigmoid(), output[1], size, threshold=threshold, most=most)

    def _queries(self, images: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """(contents `(B, T, D)`, references `(B, T, 4)` as logits, docs `(B, T)`) of the first groups' queries."""
        count = self.config.num_queries
        doc = torch.arange(1, groups + 1, device=self.device).repeat_interleave(count)
        parts = self.queries[: groups * count], self.references[: groups * count], doc
        contents, references, doc = (x.expand(images, *x.shape) for x in parts)
        return contents, references, doc

    def _noised_queries(
        self, targets: Tensor, classes: Tensor, copies: int, first_doc: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the objects `(B, M)`, `copies` times, each time with other noise."""
        boxes, labels = targets.repeat(1, copies, 1), classes.clamp(min=0).repeat(1, copies)
        centre, sides = boxes[..., :2], boxes[..., 2:]
        centre = centre + (torch.rand_like(centre) * 2 - 1) * SHIFT / 2 * sides
        sides = sides * (1 + (torch.rand_like(sides) * 2 - 1) * STRETCH)
        flipped = torch.rand(labels.shape, device=labels.device) < FLIP
        labels = torch.where(flipped, torch.randint_like(labels, len(self.labels)), labels)
        doc = torch.arange(first_doc, first_doc + copies, device=labels.device).repeat_interleave(targets.shape[1])
        return self.noised(labels), torch.cat([centre, sides], -1).logit(eps=1e-3), doc.expand(len(boxes), -1)

    def _answer(
        self, pixels: Tensor, contents: Tensor, references: Tensor, doc: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(final states `(B, T, D)` of the queries behind the image, their references)."""
        image = self.encoder.tokens(pixels)
        asked = contents + self._at_place(references.float().sigmoid()).to(contents.dtype)
        x = self.encoder.dropout(torch.cat([image, asked.to(image.dtype)], 1))
        n, t = image.shape[1], contents.shape[1]
        span = Span(
            x,
            torch.arange(n + t, device=x.device),
            runs=((n, 0), (1, 1), (t - 1, 0)),
            valid=None if valid is None else F.pad(valid, (n, 0), value=True),
            doc=F.pad(doc, (n, 0)),
        )
        at = torch.arange(n, n + t, device=x.device).expand(len(x), -1)
        return self.encoder.trunk(span, at=at), references

    def _at_place(self, boxes: Tensor) -> Tensor:
        """What a query knows of its reference `(..., 4)`: the image's position at its centre, and its coordinates."""
        rows, columns = self.config.vision.grid
        near = _tent(boxes[..., 1], rows)[..., :, None] * _tent(boxes[..., 0], columns)[..., None, :]
        waves = box_waves(boxes, self.place.in_features).to(self.place.weight.dtype)
        return near.flatten(-2) @ self.encoder.positions[0, 1:].float() + self.place(waves)

    def _read(self, states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """(logits `(B, T, C)`, boxes `(B, T, 4)` as centre x, centre y, width, height in parts of the image)."""
        return self.score(states).float(), (self.box(states).float() + references.float()).sigmoid()

    def _size(self) -> Tensor:
        """Width, height, width, height in pixels."""
        height, width = self.config.vision.image_size
        return torch.tensor([width, height, width, height], dtype=torch.float32, device=self.device)

    def flops_per_image(self, objects: int = 0) -> int:
        """Training FLOPs of an image with so many objects, forward and backward, of the trunk and the stem."""
        c = self.config
        asked = c.num_queries * c.groups + c.denoising * objects
        return self.encoder.flops_per_image(self.encoder.positions.shape[1] + asked)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name: the encoder's own, then those of `initial_head`."""
        head = dict(self.initial_head(seed))
        encoder = {f"encoder.{name}": value for name, value in self.encoder.initial_weights(seed)}
        for name, _ in self.named_parameters():
            yield name, head[name] if name in head else encoder[name]

    def initial_head(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """What is not the encoder's: references spread over the image, outputs that leave them where they are.

        Centres are uniform; sides are uniform in their logarithm, from a twentieth to a half of the image.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            shape = parameter.shape
            if name.startswith("encoder."):
                continue
            if name == "references":
                spread = torch.rand(shape, generator=generator)
                sides = 0.05 * 10 ** spread[:, 2:]
                yield name, torch.cat([spread[:, :2], sides], 1).logit(eps=0.01)
            elif name == "score.bias":
                yield name, torch.full(shape, -math.log(1 / PRIOR - 1))
            elif len(shape) < 2 or name == "box.output.weight":
                yield name, torch.zeros(shape)
            else:
                std = 0.02 if name in ("queries", "noised.weight", "score.weight") else shape[1] ** -0.5
                yield name, torch.randn(shape, generator=generator) * std

    @staticmethod
    def of(
        base: VisionModel | SetDetector,
        labels: Sequence[str],
        *,
        image_size: tuple[int, int] | None = None,
        dropout: float | None = None,
        num_queries: int = 100,
        seed: int = 0,
    ) -> SetDetector:
        """A detector with a copy of the base's weights, its positions interpolated where the size is another one.

        A base that is such a detector gives its queries and head as well: see `head_of`.
        """
        before = base if isinstance(base, SetDetector) else None
        vision, weights = encoder_of(base.encoder if isinstance(base, SetDetector) else base, image_size, dropout)
        config = replace(before.config, vision=vision) if before else SetDetectorConfig(vision, num_queries)
        module = SetDetector(config, labels)
        kept = head_of(before, labels, ("noised.", "score.")) if before else {}
        module.load_state_dict(weights | dict(module.initial_head(seed)) | kept)
        return module.to(base.device)


def box_waves(boxes: Tensor, size: int) -> Tensor:
    """Sines and cosines `(..., size)` of the four coordinates `(..., 4)` in 0 .. 1, at half a period to 32 periods."""
    frequencies = math.pi * 2 ** torch.linspace(0, 6, size // 8, device=boxes.device)
    angles = boxes[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def _tent(place: Tensor, count: int) -> Tensor:
    """Weights `(..., count)` that read a row of `count` values at `place` in 0 .. 1, linear between their middles."""
    at = (place * count - 0.5).clamp(0, count - 1)
    return (1 - (at[..., None] - torch.arange(count, device=place.device)).abs()).clamp(min=0)


def _with_total(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": parts["class"] + L1_WEIGHT * parts["l1"] + GIOU_WEIGHT * parts["giou"], **parts}


def _group_losses(
    logits: Tensor, boxes: Tensor, targets: Tensor, classes: Tensor, groups: int, *, is_matched: bool
) -> dict[str, Tensor]:
    """Sums `(B,)` as `_losses` has them, as the mean over groups of queries `(B, groups * Q, ...)`.

    Each group answers for all objects: its queries are matched to them, or stand for them one by one.
    """
    images = len(logits)
    logits, boxes = (x.reshape(images * groups, -1, x.shape[-1]) for x in (logits, boxes))
    targets, classes = targets.repeat_interleave(groups, 0), classes.repeat_interleave(groups, 0)
    real = classes >= 0
    if is_matched:
        queries = match(matching_cost(logits.detach(), boxes.detach(), targets, classes), real)
        losses = _losses(logits, boxes, targets, classes, queries)
    else:
        queries = torch.arange(classes.shape[1], device=classes.device).where(real, -1)
        losses = _losses(logits, boxes, targets, classes, queries, only=real)
    return {name: part.view(images, groups).mean(1) for name, part in losses.items()}


def _losses(
    logits: Tensor, boxes: Tensor, targets: Tensor, classes: Tensor, queries: Tensor, only: Tensor | None = None
) -> dict[str, Tensor]:
    """Sums `(R,)` of rows of queries whose objects are known: "class", "l1" and "giou".

    Args:
        logits, boxes: `(R, Q, C)` and `(R, Q, 4)`, centre x, centre y, width, height.
        targets, classes: of the objects, `(R, M, 4)` and `(R, M)`.
        queries: of the objects `(R, M)`, -1 for none.
        only: the queries `(R, Q)` whose classes are judged; by default all.
    """
    taken = queries >= 0
    at = queries.clamp(min=0)
    own = boxes.gather(1, at[..., None].expand(-1, -1, 4))
    apart = ((own - targets).abs().sum(-1) * taken).sum(1)
    a, b = cornered(own), cornered(targets)
    reached = ((1 - giou(a, b)) * taken).sum(1)
    # A query's target score is how well its box fits, as in a dense head: scores then rank boxes.
    fit = iou(a.detach(), b) * taken
    quality, owner = boxes.new_zeros(boxes.shape[:2]), torch.zeros_like(boxes[..., 0], dtype=torch.long)
    if classes.shape[1]:
        quality = quality.scatter_reduce(1, at, fit, "amax")  # an object without a query must not undo another's
        objects = torch.arange(classes.shape[1], device=classes.device).expand_as(classes)
        owner = owner.scatter_reduce(1, at, objects * taken, "amax")
    target = class_targets(owner, quality, classes, logits.shape[-1])
    return {"class": varifocal(logits, target, only), "l1": apart, "giou": reached}
