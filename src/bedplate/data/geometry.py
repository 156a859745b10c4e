"""Where pixels go: windows cut out and resampled, shifts, flips, and the boxes that move with them; by batches.

A window is the part of a picture that an output shows: (x1, y1, x2, y2) in pixels of the input, at any place and of any
size, with x1 > x2 where it is mirrored. Crops, flips, shifts and changes of scale are all windows, so pixels are
resampled once and boxes are mapped by one rule. Nothing here waits for the device or loops over images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""


def uniform(count: int, low: float, high: float, device: torch.device) -> Tensor:
    """(count,) float32 drawn uniformly from [low, high) by the device's default generator."""
    return torch.rand(count, device=device) * (high - low) + low


def as_floats(pixels: Tensor) -> Tensor:
    """Pixels as float32 in 0..1, whatever they were: uint8 in 0..255 or floats in 0..1."""
    return pixels.float() if pixels.is_floating_point() else pixels.float() / 255


def whole_windows(count: int, size: Size, device: torch.device) -> Tensor:
    """Windows (count, 4) that show the whole of pictures of this size."""
    height, width = size
    zeros = torch.zeros(count, device=device)
    return torch.stack([zeros, zeros, zeros + width, zeros + height], 1)


def quarters(count: int, size: Size, device: torch.device) -> list[Tensor]:
    """Frames (count, 4) of the four parts of canvases of this size that meet at random whole pixels near the middle."""
    bottom, right = (torch.full((count,), side, device=device, dtype=torch.float32) for side in size)
    x = (uniform(count, 0.3, 0.7, device) * size[1]).round()
    y = (uniform(count, 0.3, 0.7, device) * size[0]).round()
    zero = torch.zeros_like(x)
    ends = (zero, zero, x, y), (x, zero, right, y), (zero, y, x, bottom), (x, y, right, bottom)
    return [torch.stack(each, 1) for each in ends]


def random_crops(
    count: int, size: Size, scale: tuple[float, float], ratio: tuple[float, float], device: torch.device
) -> Tensor:
    """Windows (count, 4) of random area, shape and place inside pictures of this size: the "Inception" crop.

    The area's share is uniform in `scale` and the place uniform. The logarithm of width / height is uniform in `ratio`,
    but limited to shapes that fit with that area, where Szegedy et al. 2014 (arXiv 1409.4842, section 6) and
    torchvision draw again: so every area comes out as drawn, and there is no loop.
    """
    height, width = size
    share = uniform(count, *scale, device=device)
    # The shape is relative to the picture's own: sides are sqrt(share * shape) and sqrt(share / shape) of its sides.
    least, most = ((bound * height / width * torch.ones_like(share)).clamp(share, 1 / share) for bound in ratio)
    shape = least * (most / least) ** torch.rand(count, device=device)
    wide, tall = (share * shape).sqrt().clamp(max=1) * width, (share / shape).sqrt().clamp(max=1) * height
    return _placed(wide, tall, size)


def zoomed_out(pixels: Tensor, windows: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) whose edges go on, and their windows (B, 4), each wider and higher by a factor 1..`most`.

    The old window lies at a random place in the new one.
    """
    edge = math.ceil((most - 1) * max(pixels.shape[-2:]))
    pixels = F.pad(as_floats(pixels), (edge,) * 4, mode="replicate")
    more = uniform(len(windows), 0, most - 1, windows.device).unsqueeze(1) * (windows[:, 2:] - windows[:, :2])
    before = more * torch.rand_like(more)
    windows = torch.cat([windows[:, :2] - before, windows[:, 2:] + more - before], 1)
    return pixels, windows + edge


def random_scales(frames: Tensor, source: Size, fit: float | Tensor, scale: tuple[float, float]) -> Tensor:
    """Windows (B, 4) of scale jitter: what of pictures of size `source` is shown in each of the `frames` (B, 4).

    The zoom is uniform in `scale` times `fit`. A picture larger than its frame is cropped at random, a smaller one lies
    in it at a random place (Ghiasi et al. 2020, arXiv 2012.07177, section 3: `scale` 0.8 to 1.25 is their standard
    jitter, 0.1 to 2 their large-scale one).
    """
    zoom = uniform(len(frames), *scale, device=frames.device) * fit
    return _placed((frames[:, 2] - frames[:, 0]) / zoom, (frames[:, 3] - frames[:, 1]) / zoom, source)


def _placed(wide: Tensor, tall: Tensor, size: Size) -> Tensor:
    """Windows (B, 4) of these sides (B,) at a random place: within the picture, or around it where they are larger."""
    left = torch.rand_like(wide) * (size[1] - wide)
    top = torch.rand_like(tall) * (size[0] - tall)
    return torch.stack([left, top, left + wide, top + tall], 1)


def mirrored(windows: Tensor, which: Tensor) -> Tensor:
    """The windows (B, 4), flipped from left to right where `which` (B,) is true."""
    x1, y1, x2, y2 = windows.unbind(1)
    return torch.stack([torch.where(which, x2, x1), y1, torch.where(which, x1, x2), y2], 1)


def resample(pixels: Tensor, windows: Tensor, size: Size, frames: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Show a window of each picture, resized with a triangle filter that widens as it shrinks (so it does not alias).

    That is what Pillow's `Image.resize(size, BILINEAR, box=window)` computes. The filter is separable, so it is two
    matrix products a picture, with matrices that are the pictures' own.

    Args:
        pixels: uint8 (B, 3, H, W), or floats in 0..1.
        windows: (B, 4) in pixels of the input; what lies outside the picture is black.
        size: (h, w) of the output.
        frames: (B, 4) in pixels of the output: where each window is shown, black around it; all of it if None.

    Returns:
        (B, 3, h, w) float32 in 0..1, and what is picture there: (B, 1, h, w) of 0 and 1.
    """
    (batch, channels, height, width), (to_height, to_width) = pixels.shape, size
    if frames is None:
        frames = whole_windows(batch, size, pixels.device)
    across, columns = _filters(windows[:, 0::2], frames[:, 0::2], width, to_width)
    down, rows = _filters(windows[:, 1::2], frames[:, 1::2], height, to_height)
    if not pixels.is_floating_point():
        down = down / 255
    with torch.autocast(pixels.device.type, enabled=False):  # half precision would misplace edges
        shown = pixels.float().reshape(batch, channels * height, width) @ across.transpose(1, 2)
        shown = down.unsqueeze(1) @ shown.view(batch, channels, height, to_width)
    covered = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1).float()
    return shown, covered


def _filters(window: Tensor, frame: Tensor, source: int, target: int) -> tuple[Tensor, Tensor]:
    """Weights (B, target, source) of one axis' resampling, and which outputs (B, target) show some of the picture."""
    device = window.device
    start, stop, first, last = (column.unsqueeze(1) for column in (*window.unbind(1), *frame.unbind(1)))
    step = (stop - start) / (last - first)
    place = torch.arange(target, device=device) + 0.5
    centre = start + (place - first) * step  # (B, target)
    shown = (centre > 0) & (centre < source) & (place > first) & (place < last)
    distance = (torch.arange(source, device=device) + 0.5 - centre.unsqueeze(2)).abs_()
    weights = (1 - distance / step.abs().clamp(min=1).unsqueeze(2)).clamp_(min=0)
    total = weights.sum(2, keepdim=True).clamp_(min=0.5)  # a centre inside has that much at the least
    return weights * (shown.unsqueeze(2) / total), shown


def shift_and_flip(pixels: Tensor, reach: int, flip: bool) -> Tensor:
    """Shift each picture by up to `reach` pixels both ways, black entering, and mirror every other one, by indexing.

    The shift is the pad-and-crop of CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2: padded by 4 pixels).

    Args:
        pixels: (B, C, H, W) of any type, which the output keeps.
    """
    (batch, channels, height, width), device = pixels.shape, pixels.device
    which = torch.rand(batch, device=device) < 0.5 if flip else torch.zeros(batch, dtype=torch.bool, device=device)
    if not reach:
        return torch.where(which[:, None, None, None], pixels.flip(3), pixels) if flip else pixels
    down, across = torch.randint(0, 2 * reach + 1, (2, batch, 1), device=device).unbind(0)
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(which.unsqueeze(1), width - 1 - columns, columns) + across
    rows = torch.arange(height, device=device) + down
    stride = width + 2 * reach
    places = (rows.unsqueeze(2) * stride + columns.unsqueeze(1)).view(batch, 1, height * width)
    padded = F.pad(pixels, (reach, reach, reach, reach)).flatten(2)
    return padded.gather(2, places.expand(batch, channels, height * width)).view_as(pixels)


def move_boxes(
    boxes: Tensor, classes: Tensor, windows: Tensor, size: Size, keep: float, frames: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Boxes where their objects are after `resample` with the same windows and frames.

    Boxes are clipped to their frame. Those that keep less than the share `keep` of their area, or are left thinner than
    a pixel, become padding: class -1 and a box of zeros, as what was padding does.

    Args:
        boxes: (B, M, 4) x1 y1 x2 y2 in pixels of the input.
        classes: (B, M) int64, -1 for padding.

    Returns:
        boxes (B, M, 4) float32 in pixels of the output, classes (B, M).
    """
    if frames is None:
        frames = whole_windows(len(boxes), size, boxes.device)
    window, frame = windows.unsqueeze(1), frames.unsqueeze(1)
    zoom = (frame[..., 2:] - frame[..., :2]) / (window[..., 2:] - window[..., :2])
    ends = (boxes.float().unflatten(2, (2, 2)) - window[..., None, :2]) * zoom.unsqueeze(2) + frame[..., None, :2]
    moved = torch.cat([ends.amin(2), ends.amax(2)], 2)  # a mirrored window swaps the ends
    clipped = moved.maximum(frame[..., :2].repeat(1, 1, 2)).minimum(frame[..., 2:].repeat(1, 1, 2))
    sides = clipped[..., 2:] - clipped[..., :2]
    before = (moved[..., 2:] - moved[..., :2]).prod(2)
    alive = (classes >= 0) & (sides >= 1).all(2) & (sides.prod(2) >= keep * before)
    return clipped * alive.unsqueeze(2), classes.masked_fill(~alive, -1)
