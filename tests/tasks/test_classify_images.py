"""Classification of pictures as a task: what ranks share of an evaluation."""

from typing import Any

import torch
from torch import Tensor

from bedplate.models.vit import VisionConfig, ViT
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.tasks.classify_images import ClassifyImages


def test_pictures_of_all_ranks_count_once_in_their_order() -> None:
    module = ViT(VisionConfig((8, 8), 4, TrunkConfig(16, 1, 2, 2, 8, 32, **PRESETS["vit"])), ["a", "b"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    pixels = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels, index = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([4, 9, 2, 7, 0])

    def batch(*rows: int) -> dict[str, Tensor]:
        at = torch.tensor(rows)
        return {"pixels": pixels[at], "labels": labels[at], "index": index[at]}

    def of_two_ranks(mine: list[Any]) -> list[Any]:
        """The other rank's results between this one's; its last batch fills up."""
        others = []
        for rows in ((2, 3), (4,)):
            logits, truth = alone.logits([batch(*rows)])
            others.append((index[list(rows)], logits, truth))
        return [part for pair in zip(mine, others, strict=True) for part in pair]

    alone = ClassifyImages(module, [0.5] * 3, [0.5] * 3)
    shared = ClassifyImages(module, [0.5] * 3, [0.5] * 3, collect=of_two_ranks)
    logits, truth = shared.logits([batch(0, 1), batch(4)])
    torch.testing.assert_close(logits, alone.logits([batch(0, 1, 2, 3, 4)])[0])
    assert truth.tolist() == labels.tolist()
    assert shared.evaluate([batch(0, 1), batch(4)])["accuracy"]["n"] == 5
