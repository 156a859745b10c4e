"""Pictures mixed with each other and with noise: mixup, CutMix, random erasing; batches on one device."""

import torch
from torch import Tensor

from bedplate.data.geometry import uniform

ERASED_SHARE = (0.02, 0.4)
ERASED_RATIO = (0.3, 1 / 0.3)


def mix(pixels: Tensor, labels: Tensor, classes: int, mixup: float = 0.0, cutmix: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mix each picture with its neighbour in the batch, and their labels in the same proportion.

    Mixup (Zhang et al. 2017, arXiv 1710.09412) blends the two with a weight from Beta(mixup, mixup). CutMix (Yun et al.
    2019, arXiv 1905.04899) puts a rectangle of the neighbour into the picture: centre uniform, share of the area 1 - a
    weight from Beta(cutmix, cutmix), cut at the edges; the labels' weight is the share that is left after that. Where
    both are on, a coin decides for each picture. Each has its own weight, where the papers draw one a batch.

    Args:
        pixels: float32 (B, C, H, W). The neighbour is the picture before, so a batch must not be sorted.
        labels: int64 (B,) in [0, classes).
        mixup, cutmix: The parameters of the Beta distributions; 0 turns one off.

    Returns:
        pixels (B, C, H, W), and targets float32 (B, classes) whose rows sum to 1.
    """
    batch, _, height, width = pixels.shape
    device = pixels.device
    targets = torch.zeros(batch, classes, device=device).scatter_(1, labels.unsqueeze(1), 1.0)
    if not (mixup or cutmix):
        return pixels, targets
    own = torch.ones(batch, 1, 1, device=device)  # the weight of the picture itself, at each of its pixels
    if mixup:
        own = _beta(batch, mixup, device).view(-1, 1, 1)
    if cutmix:
        side = (1 - _beta(batch, cutmix, device)).sqrt()  # the rectangle's, as a share of the picture's
        tall, wide = (side * height).round(), (side * width).round()
        top = (torch.rand(batch, device=device) * height - tall / 2).round()
        left = (torch.rand(batch, device=device) * width - wide / 2).round()
        kept = 1 - (_span(top, tall, height).unsqueeze(2) & _span(left, wide, width).unsqueeze(1)).float()
        own = torch.where(torch.rand(batch, 1, 1, device=device) < 0.5, own, kept) if mixup else kept
    share = own.mean((1, 2)).unsqueeze(1)
    return (
        pixels.roll(1, 0).lerp(pixels, own.unsqueeze(1)),
        targets.roll(1, 0) * (1 - share) + targets * share,
    )


def erase(pixels: Tensor, probability: float) -> Tensor:
    """Fill a rectangle of some pictures with noise: random erasing (Zhong et al. 2017, arXiv 1708.04896).

    The rectangle's share of the area is uniform in 0.02..0.4 and the logarithm of its height / width in the range of
    0.3..1/0.3 (the paper's ranges); it lies inside the picture, and a side longer than the picture is cut. Each value
    in it is uniform in 0..1 (the paper's best variant, "RE-R").

    Args:
        pixels: floats (B, C, H, W) in 0..1.
        probability: How likely each picture is to be touched.
    """
    batch, _, height, width = pixels.shape
    device = pixels.device
    area = uniform(batch, *ERASED_SHARE, device=device) * height * width
    low, high = ERASED_RATIO
    ratio = low * (high / low) ** torch.rand(batch, device=device)
    tall = (area * ratio).sqrt().clamp(max=height).round()
    wide = (area / ratio).sqrt().clamp(max=width).round()
    touched = torch.rand(batch, device=device) < probability
    top = (torch.rand(batch, device=device) * (height - tall + 1)).floor()
    left = (torch.rand(batch, device=device) * (width - wide + 1)).floor()
    inside = _span(top, tall, height).unsqueeze(2) & _span(left, wide, width).unsqueeze(1) & touched.view(-1, 1, 1)
    return torch.where(inside.unsqueeze(1), torch.rand_like(pixels), pixels)


def _span(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size), true at the `length` (B,) numbers from `start` (B,) on."""
    place = torch.arange(size, device=start.device)
    return (place >= start.unsqueeze(1)) & (place < (start + length).unsqueeze(1))


def _beta(count: int, parameter: float, device: torch.device) -> Tensor:
    """(count,) from Beta(parameter, parameter)."""
    shape = torch.full((2, count), parameter, device=device)
    one, other = torch.distributions.Gamma(shape, torch.ones_like(shape), validate_args=False).sample()
    return one / (one + other)  # Gamma never gives 0; checking its arguments would wait for the device
