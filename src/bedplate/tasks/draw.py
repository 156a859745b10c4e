"""Drawing: foretell an image's codes from its text and from the codes before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bedplate.metrics.intervals import ratio_interval
from bedplate.models.dalle import Dalle
from bedplate.tasks import Batch


class Draw:
    """Batches hold `ids (B, L)` and `codes (B, N)`; to evaluate, `index (B,)` too.

    Attributes:
        text_drop: the probability that training hides a text, so that the model can also draw without one, which
            guidance needs (arXiv 2207.12598).
        collect: makes of one rank's results those of all, where ranks share the held-out batches.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {"loss": "min", "loss_without_text": "min"}
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self, module: Dalle, text_drop: float = 0.1, collect: Callable[[list[Tensor]], list[Tensor]] = list
    ) -> None:
        self.module, self.text_drop, self.collect = module, text_drop, collect

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        ids = batch["ids"]
        hidden = torch.rand(len(ids), 1, device=ids.device) < self.text_drop
        return {"loss": self.module.loss(torch.where(hidden, self.module.without_text(ids), ids), batch["codes"])}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Nats a code with its text (`loss`) and with none (`loss_without_text`), with intervals over images.

        An image that fills up the batches of several ranks counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        rows = []
        for batch in batches:
            ids, codes = batch["ids"].to(device), batch["codes"].to(device)
            nats = [module.nats(text, codes).cpu().double() for text in (ids, module.without_text(ids))]
            rows.append(torch.stack([batch["index"].cpu().double(), *nats], 1))
        module.train(was_training)
        table = torch.cat(self.collect(rows)).numpy()
        table = table[np.unique(table[:, 0], return_index=True)[1]]
        codes_each = np.full(len(table), module.config.codes)
        return {
            "loss": ratio_interval(table[:, 1], codes_each),
            "loss_without_text": ratio_interval(table[:, 2], codes_each),
        }

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None in words: the report shows drawings."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["codes"]) * self.module.flops_per_image()
