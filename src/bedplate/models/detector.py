"""Detector: a plain ViT, a pyramid made of its one map, and at every place of it a box and its scores.

The pyramid is ViTDet's (arXiv 2203.16527, section 3), the dense head without anchors FCOS's (arXiv 1904.01355), with
places assigned to objects by how well they predict them (TOOD, arXiv 2108.07755).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.align import assign
from bedplate.models.boxes import best_detections, cornered, giou
from bedplate.models.vit import VisionConfig, VisionModel

if TYPE_CHECKING:
    from bedplate.models.set_detector import SetDetector

BOX_WEIGHT = 2.0  # of the boxes' loss in the total, as in TOOD
PRIOR = 0.01  # what a fresh head believes of each class at each place (RetinaNet, arXiv 1708.02002, section 4.1)
ALPHA, GAMMA = 0.75, 2.0  # of the varifocal loss, as in its paper
GROUP = 16  # channels that share a norm (arXiv 1803.08494)

Output = tuple[Tensor, Tensor, Tensor]  # logits (B, P, C), boxes (B, P, 4), places (P, 2)


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """The shape of a detector.

    Attributes:
        head_size: channels of the pyramid and of the head, a multiple of 16.
        head_layers: convolutions before the scores, and as many before the boxes.
    """

    vision: VisionConfig
    head_size: int = 96
    head_layers: int = 2

    def __post_init__(self) -> None:
        if self.head_size % GROUP or self.head_size < GROUP:
            raise InputError(f"head_size={self.head_size} must be a multiple of {GROUP}")
        if self.vision.patch_size % 2:
            raise InputError(f"patch_size={self.vision.patch_size} of a detector must be even: its pyramid halves it")


class Pyramid(nn.Module):
    """A map `(B, D, h, w)` at half, once and twice its stride: `(B, C, 2h, 2w)`, `(B, C, h, w)`, `(B, C, h/2, w/2)`."""

    def __init__(self, hidden_size: int, head_size: int) -> None:
        super().__init__()
        self.finer = nn.Linear(hidden_size, 4 * head_size)  # a transposed convolution whose stride is its size
        self.same = nn.Linear(hidden_size, head_size)
        self.coarser = nn.Linear(hidden_size, head_size)
        self.norms = nn.ModuleList(nn.GroupNorm(head_size // GROUP, head_size) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        b, _, h, w = x.shape
        rows = x.permute(0, 2, 3, 1)
        finer = self.finer(rows).view(b, h, w, 2, 2, -1).transpose(2, 3).reshape(b, 2 * h, 2 * w, -1)
        coarser = F.max_pool2d(x, 2, ceil_mode=True).permute(0, 2, 3, 1)
        maps = finer, self.same(rows), self.coarser(coarser)
        return [F.silu(norm(y.permute(0, 3, 1, 2))) for norm, y in zip(self.norms, maps, strict=True)]


class Separable(nn.Module):
    """A 3x3 convolution of each channel, then a product over channels: a ninth of the work of a whole convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(size, size, 3, padding=1, groups=size, bias=False)
        self.across = nn.Linear(size, size, bias=False)
        self.norm = nn.GroupNorm(size // GROUP, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.around(x.contiguous(memory_format=torch.channels_last))
        return F.silu(self.norm(self.across(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)))


class DenseHead(nn.Module):
    """Of each place of each map class logits and a box; all maps share the weights, each has its scale of boxes."""

    def __init__(self, config: DetectorConfig, classes: int) -> None:
        super().__init__()
        size = config.head_size
        self.score_layers = nn.Sequential(*(Separable(size) for _ in range(config.head_layers)))
        self.box_layers = nn.Sequential(*(Separable(size) for _ in range(config.head_layers)))
        self.score = nn.Linear(size, classes)
        self.box = nn.Linear(size, 4)
        self.scales = nn.Parameter(torch.ones(3))

    def forward(self, maps: Sequence[Tensor], strides: Sequence[int]) -> Output:
        """(logits `(B, P, C)`, boxes `(B, P, 4)` as x1 y1 x2 y2 in pixels, the places' centres `(P, 2)` in pixels).

        A box is its centre's way from the place and the logarithms of its sides, both in strides: unlike distances to
        four sides, which are positive, these reach a tiny object that lies between the places, too.
        """
        logits, boxes, places = [], [], []
        for x, stride, scale in zip(maps, strides, self.scales.float(), strict=True):
            logits.append(self.score(_rows(self.score_layers(x))).float())
            raw = self.box(_rows(self.box_layers(x))).float() * scale
            place = _places(x.shape[2], x.shape[3], stride, x.device)
            sides = raw[..., 2:].clamp(max=8).exp() * stride
            boxes.append(cornered(torch.cat([place + raw[..., :2] * stride, sides], -1)))
            places.append(place)
        return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(places)


class Detector(nn.Module):
    """Pixels in, boxes out, each with a probability for every label."""

    def __init__(self, config: DetectorConfig, labels: Sequence[str]) -> None:
        super().__init__()
        if not labels:
            raise InputError("a detector needs at least one label")
        self.config, self.labels = config, list(labels)
        self.encoder = VisionModel(config.vision)
        self.pyramid = Pyramid(config.vision.trunk.hidden_size, config.head_size)
        self.head = DenseHead(config, len(labels))

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def strides(self) -> tuple[int, int, int]:
        """Pixels from one place to the next, by level."""
        patch = self.config.vision.patch_size
        return patch // 2, patch, 2 * patch

    def forward(self, pixels: Tensor) -> Output:
        """(logits `(B, P, C)`, boxes `(B, P, 4)`, places `(P, 2)`) of normalised pixels; see `DenseHead`."""
        return self.head(self.pyramid(self.encoder.features(pixels)), self.strides)

    def losses(self, pixels: Tensor, boxes: Tensor, classes: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: (sum over the batch, weight)}: "loss" and its parts "class" and "box".

        The weight is the sum of the target scores, which may be 0: a batch without objects is learnt from, too.

        Args:
            pixels: `(B, C, H, W)`, normalised.
            boxes: `(B, M, 4)`, x1 y1 x2 y2 in pixels.
            classes: `(B, M)`, -1 for padding.
        """
        parts, weight = self.image_losses(pixels, boxes, classes)
        return {name: (part.sum(), weight.sum()) for name, part in parts.items()}

    def image_losses(self, pixels: Tensor, boxes: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """({name: sums of each image `(B,)`}, the sums of its target scores `(B,)`); arguments as in `losses`."""
        return self.losses_of(self(pixels), boxes, classes)

    def losses_of(self, output: Output, boxes: Tensor, classes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`image_losses` of what `forward` gave."""
        logits, predicted, places = output
        found = assign(logits.detach().sigmoid(), predicted.detach(), places, boxes, classes, reach=self.strides[0] / 2)
        class_loss = varifocal(logits, class_targets(found.object, found.quality, classes, logits.shape[-1]))
        box_loss = torch.zeros_like(class_loss)
        if boxes.shape[1]:
            own = boxes.gather(1, found.object[..., None].expand(-1, -1, 4))
            box_loss = ((1 - giou(predicted, own)) * found.quality).sum(1)
        parts = {"loss": class_loss + BOX_WEIGHT * box_loss, "class": class_loss, "box": box_loss}
        return parts, found.quality.sum(1)

    @torch.no_grad()
    def detect(
        self, pixels: Tensor, threshold: float = 0.05, iou: float = 0.6, most: int = 100
    ) -> list[dict[str, Tensor]]:
        """Detections of each image of normalised pixels `(B, C, H, W)`, best first, boxes in pixels of the canvas.

        Each is {"boxes" (K, 4), "scores" (K,), "classes" (K,)}; of two boxes of a class whose IoU is above `iou` only
        the better one is there.
        """
        return self.found_in(self(pixels), threshold, iou, most)

    def found_in(
        self, output: Output, threshold: float = 0.05, iou: float = 0.6, most: int = 100
    ) -> list[dict[str, Tensor]]:
        """`detect` of what `forward` gave."""
        scores, boxes = output[0].sigmoid(), output[1]
        return best_detections(scores, boxes, self.config.vision.image_size, threshold=threshold, most=most, iou=iou)

    def flops_per_image(self, objects: int = 0) -> int:
        """Training FLOPs an image, forward and backward; how many objects it holds is of no account here."""
        rows, columns = self.config.vision.grid
        counts = [4 * rows * columns, rows * columns, math.ceil(rows / 2) * math.ceil(columns / 2)]
        layers = [self.pyramid.finer, self.pyramid.same, self.pyramid.coarser]
        pyramid = counts[1] * _weights(layers[0]) + sum(
            n * _weights(layer) for n, layer in zip(counts[1:], layers[1:], strict=True)
        )
        return self.encoder.flops_per_image() + 6 * (pyramid + sum(counts) * _weights(self.head))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name: the encoder's own, then those of `initial_head`."""
        for name, value in self.encoder.initial_weights(seed):
            yield f"encoder.{name}", value
        yield from self.initial_head(seed)

    def initial_head(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """What stands behind the encoder: matrices are normal with 1 / sqrt(fan in), the two outputs small.

        Each class begins at a probability of 0.01, each box at its place with sides of four strides.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            shape = parameter.shape
            if name.startswith("encoder."):
                continue
            if name == "head.score.bias":
                yield name, torch.full(shape, -math.log(1 / PRIOR - 1))
            elif name == "head.box.bias":
                yield name, torch.tensor([0.0, 0.0, math.log(4), math.log(4)])
            elif len(shape) < 2:
                yield name, torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
            else:
                std = 0.01 if name in ("head.score.weight", "head.box.weight") else math.prod(shape[1:]) ** -0.5
                yield name, torch.randn(shape, generator=generator) * std

    @staticmethod
    def of(
        base: VisionModel | Detector,
        labels: Sequence[str],
        *,
        image_size: tuple[int, int] | None = None,
        dropout: float | None = None,
        seed: int = 0,
    ) -> Detector:
        """A detector with a copy of the base's weights, its positions interpolated where the size is another one.

        A base that is such a detector gives its pyramid and head as well: see `head_of`.
        """
        before = base if isinstance(base, Detector) else None
        vision, weights = encoder_of(base.encoder if isinstance(base, Detector) else base, image_size, dropout)
        module = Detector(replace(before.config, vision=vision) if before else DetectorConfig(vision), labels)
        kept = head_of(before, labels, ("head.score.",)) if before else {}
        module.load_state_dict(weights | dict(module.initial_head(seed)) | kept)
        return module.to(base.device)


def head_of(base: Detector | SetDetector, labels: Sequence[str], scores: tuple[str, ...]) -> dict[str, Tensor]:
    """What a detector takes of another's head: of its `scores` nothing, unless labels are the same in the same order.

    Args:
        scores: how names of weights begin that belong to labels.
    """
    left = ("encoder.",) if base.labels == list(labels) else ("encoder.", *scores)
    return {name: value for name, value in base.state_dict().items() if not name.startswith(left)}


def encoder_of(
    base: VisionModel, image_size: tuple[int, int] | None, dropout: float | None
) -> tuple[VisionConfig, dict[str, Tensor]]:
    """What a detector's encoder takes from a base: (its config, weights as {"encoder.NAME": value})."""
    if image_size is not None and image_size != base.config.image_size:
        base = base.with_image_size(image_size)
    config = base.config
    if dropout is not None:
        config = replace(config, trunk=replace(config.trunk, dropout=dropout))
    own = VisionModel(config).state_dict().keys()
    return config, {f"encoder.{name}": value for name, value in base.state_dict().items() if name in own}


def class_targets(owner: Tensor, quality: Tensor, classes: Tensor, labels: int) -> Tensor:
    """Target scores `(B, P, C)`: `quality (B, P)` at the class of each place's object `owner (B, P)`, 0 elsewhere."""
    target = quality.new_zeros(*quality.shape, labels)
    if classes.shape[1]:
        target.scatter_(-1, classes.gather(1, owner).clamp(min=0)[..., None], quality[..., None])
    return target


def varifocal(logits: Tensor, targets: Tensor, only: Tensor | None = None) -> Tensor:
    """Sums `(B,)` of the cross-entropy with target scores `(B, P, C)` (arXiv 2008.13367, equation 2).

    Objects count by their target; background counts the less the surer the network is of it. Of `only (B, P)` the
    places are counted, by default all.
    """
    weight = torch.where(targets > 0, targets, ALPHA * logits.detach().sigmoid() ** GAMMA)
    if only is not None:
        weight = weight * only[..., None]
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight).flatten(1).sum(1)


def _places(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """Centres `(rows * columns, 2)` of a map's places, x y in pixels, row by row."""
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) * stride for n in (rows, columns))
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1).flatten(0, 1)


def _rows(x: Tensor) -> Tensor:
    """A map `(B, C, h, w)` as rows `(B, h w, C)`."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _weights(module: nn.Module) -> int:
    """Entries of its matrices and kernels: products a place."""
    return sum(p.numel() for p in module.parameters() if p.dim() >= 2)
