"""Pictures of coloured rectangles on noise, whose boxes are known, and tiny trunks to find them with."""

from collections.abc import Callable

import torch
from torch import Tensor

from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig

COLOURS = torch.tensor([[1.0, 0.1, 0.1], [0.1, 1.0, 0.1], [0.1, 0.1, 1.0]])
LABELS = ["red", "green", "blue"]


def tiny_config(image_size: tuple[int, int] = (64, 96), patch_size: int = 8) -> VisionConfig:
    trunk = TrunkConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        norm="layer",
        activation="gelu",
        gated=False,
        qk_norm=False,
        rope=None,
    )
    return VisionConfig(image_size, patch_size, trunk)


def tiny_encoder(seed: int = 0, **options: object) -> VisionModel:
    module = VisionModel(tiny_config(**options))  # type: ignore[arg-type]
    module.init_weights(seed)
    return module


def pictures(
    count: int, seed: int = 0, most: int = 4, size: tuple[int, int] = (64, 96)
) -> tuple[Tensor, Tensor, Tensor]:
    """(pixels `(B, 3, H, W)` in 0 .. 1, boxes `(B, most, 4)`, classes `(B, most)`, -1 for padding).

    Each holds 1 .. `most` rectangles of 12 to 40 pixels that do not touch each other.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    height, width = size
    pixels = torch.rand((count, 3, height, width), generator=generator) * 0.3
    boxes, classes = torch.zeros(count, most, 4), torch.full((count, most), -1)
    for number in range(count):
        taken = torch.zeros(height, width, dtype=torch.bool)
        wanted = draw(1, most + 1)
        placed = 0
        for _ in range(100):
            w, h = draw(12, 40), draw(12, 40)
            x, y = draw(0, width - w + 1), draw(0, height - h + 1)
            if placed == wanted or taken[y : y + h, x : x + w].any():
                continue
            colour = draw(0, 3)
            taken[y : y + h, x : x + w] = True
            pixels[number, :, y : y + h, x : x + w] = COLOURS[colour][:, None, None]
            boxes[number, placed], classes[number, placed] = torch.tensor([x, y, x + w, y + h]).float(), colour
            placed += 1
    return pixels, boxes, classes


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - 0.3) / 0.3


def average_precision(found: list[dict[str, Tensor]], boxes: Tensor, classes: Tensor, threshold: float = 0.5) -> float:
    """AP at an IoU over all classes together, by the area under its stepwise curve: slow and plain."""
    said = sorted(
        (
            (float(score), number, box, int(label))
            for number, one in enumerate(found)
            for score, box, label in zip(one["scores"], one["boxes"], one["classes"], strict=True)
        ),
        key=lambda row: -row[0],
    )
    total, hits, area, taken = int((classes >= 0).sum()), 0, 0.0, set()
    for rank, (_, number, box, label) in enumerate(said, start=1):
        for index, truth in enumerate(boxes[number]):
            same = classes[number, index] == label and (number, index) not in taken
            if same and plain_iou(box.tolist(), truth.tolist()) >= threshold:
                taken.add((number, index))
                hits += 1
                area += hits / rank / total
                break
    return area


def plain_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


def check_that_parts_weigh_what_the_batch_weighs(losses: Callable[..., dict[str, tuple[Tensor, Tensor]]]) -> None:
    """Pictures without objects add a loss and no weight: micro-batches and ranks change nothing."""
    pixels, boxes, classes = pictures(4)
    classes[1:] = -1
    batch = normalised(pixels), boxes, classes
    whole = losses(*batch)["loss"]
    parts = [losses(*(each[i : i + 1] for each in batch))["loss"] for i in range(4)]
    assert [weight.item() > 0 for _, weight in parts] == [True, False, False, False]
    for total, each in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(sum(each), total)
