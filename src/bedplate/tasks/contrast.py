"""Contrastive learning: pictures beside the texts that belong to them, away from all others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.metrics.intervals import ratio_interval
from bedplate.metrics.retrieval import retrieval
from bedplate.models.clip import Clip
from bedplate.tasks import Batch, row_count
from bedplate.tasks.pixels import normalize

Objective = Literal["infonce", "siglip"]
Augment = Callable[[Tensor, tuple[int, int]], Tensor]
SCORED_ROWS = 256  # held-out pairs among which each other's texts are told apart by the loss
NEVER = -1e4  # a logit whose probability is 0, in fp32, beside cosines times 100 at most
PULLED = "pull"  # of images and of texts, and of what is neither


class Contrast:
    """Batches hold `pixels (B, 3, H, W)` uint8, `ids (B, L)`, `group (B,)`, `text (B,)`, `index (B,)` and `row (B,)`.

    A picture's positives are the texts of all pictures of its group, and its own text wherever it stands.

    - "infonce" (arXiv 2103.00020, figure 3): the mean of the cross-entropies of a picture's texts and of a text's
      pictures. Several positives share the probability equally (arXiv 2204.03610, equation 2).
    - "siglip" (arXiv 2303.15343, equation 1): each pair by itself, a text and a picture, is one or is none.

    With `image_weight`, pictures of one group are each other's positives among all pictures, too (SupCon, arXiv
    2004.11362, equation 2): what a name has in common in two styles is then learnt from pictures, which say more of it
    than a name does. Held-out losses are without it.

    Batches are shared by ranks: each learns from its own rows among the features of all, and the sums of the losses
    and of the gradients are those of one process.

    A batch in parts has the gradients of the whole (gradient cache, arXiv 2101.06983): all features are computed first
    and forgotten but for themselves, then the loss gives each its gradient, then the parts are computed once more and
    pulled by it. `micro_batches` does the first two, `loss` the last.

    Args:
        mean, std: of each channel of values in 0..1, taken out before the network.
        augment: what training shows of pictures; None shows them as they are.
        objective, image_weight: see above.
        gather: all ranks' rows of a tensor in their order, with gradients.
        collect: makes of one rank's results those of all, where ranks share what is not trained on.
    """

    metrics: ClassVar[Mapping[str, Literal["min", "max"]]] = {
        "image_to_text_r1": "max",
        "text_to_image_r1": "max",
        "loss": "min",
    }
    unit: ClassVar[Literal["tokens", "images"]] = "images"

    def __init__(
        self,
        module: Clip,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: Augment | None = None,
        objective: Objective = "infonce",
        image_weight: float = 0.0,
        gather: Callable[[Tensor], Tensor] = lambda values: values,
        collect: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        self.module, self.mean, self.std, self.augment = module, mean, std, augment
        self.objective, self.image_weight, self.gather, self.collect = objective, image_weight, gather, collect

    def loss(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        if f"{PULLED}_images" in batch:
            return self._pulled(batch)
        images, texts = self._features(self._seen(batch["pixels"]), batch["ids"])
        total = self._nats(images, texts, batch).sum()
        return {"loss": (total, row_count(images))}

    def micro_batches(self, batch: Batch, rows: int) -> list[Batch]:
        """The batch in parts of `rows` rows, each with what pulls its features where the whole batch wants them.

        Pictures are augmented as a whole, and the random numbers of each part are kept, so that dropout is the same
        when it is computed again.
        """
        batch = {**batch, "pixels": self._seen(batch["pixels"])}
        parts = [{k: v[start : start + rows] for k, v in batch.items()} for start in range(0, len(batch["ids"]), rows)]
        states, features = [], []
        with torch.no_grad():
            for part in parts:
                states.append(_random(batch["pixels"].device).get_rng_state())
                features.append(self._features(part["pixels"], part["ids"]))
        images, texts = (torch.cat(each).requires_grad_() for each in zip(*features, strict=True))
        with torch.enable_grad():
            nats = self._nats(images, texts, batch)
        pulls = torch.autograd.grad(nats.sum(), [images, texts, *self._scales])
        shares = [pull / len(parts) for pull in pulls[2:]]
        kept = {"nats": nats.detach(), f"{PULLED}_images": pulls[0], f"{PULLED}_texts": pulls[1]}
        return [
            {
                **part,
                **{name: value[number * rows : (number + 1) * rows] for name, value in kept.items()},
                f"{PULLED}_scales": torch.stack(shares),
                "random": state,
            }
            for number, (part, state) in enumerate(zip(parts, states, strict=True))
        ]

    def _pulled(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """A part of a batch: the value of its loss, and the gradient that the whole batch gives it."""
        _random(batch["pixels"].device).set_rng_state(batch["random"].cpu())
        images, texts = self._features(batch["pixels"], batch["ids"])
        work = (images * batch[f"{PULLED}_images"]).sum() + (texts * batch[f"{PULLED}_texts"]).sum()
        for scale, pull in zip(self._scales, batch[f"{PULLED}_scales"], strict=True):
            work = work + scale * pull
        total = work + (batch["nats"].sum() - work).detach()
        return {"loss": (total, row_count(images))}

    def _seen(self, pixels: Tensor) -> Tensor:
        """What the network reads of stored pixels."""
        if self.augment is not None:
            pixels = self.augment(pixels, self.module.config.vision.image_size)
        return normalize(pixels, self.mean, self.std)

    def _features(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Features of normalised pixels and of ids, each `(B, P)` fp32 of length 1."""
        images, texts = self.module.image_features(pixels), self.module.text_features(ids)
        return F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)

    @property
    def _scales(self) -> list[Tensor]:
        """The parameters that are in the loss and in no feature."""
        return [each for each in (self.module.logit_scale, self.module.logit_bias) if each is not None]

    def _nats(self, images: Tensor, texts: Tensor, batch: Batch) -> Tensor:
        """The loss of each of this rank's rows `(B,)`, of their features `(B, P)` among those of all ranks `(N, P)`."""
        group, text = batch["group"], batch["text"]
        same = group[:, None] == self.gather(group)
        positive = same | (text[:, None] == self.gather(text))
        everyone = self.gather(images), self.gather(texts)
        nats = contrastive_nats(self.module, images, texts, *everyone, positive, self.objective)
        if self.image_weight:
            itself = batch["row"][:, None] == self.gather(batch["row"])
            nats = nats + self.image_weight * mate_nats(self.module, images, everyone[0], same & ~itself, itself)
        return nats

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Recall at 1 both ways among all pairs, and nats a pair among `SCORED_ROWS` of them (`loss`)."""
        images, texts, group, text, _ = self.features(batches)
        nats = []
        for start in range(0, len(images), SCORED_ROWS):
            part = slice(start, start + SCORED_ROWS)
            positive = (group[part, None] == group[part]) | (text[part, None] == text[part])
            device = self.module.device
            pair = (images[part].to(device), texts[part].to(device))
            nats.append(contrastive_nats(self.module, *pair, *pair, positive.to(device), self.objective))
        each = torch.cat(nats).cpu().double().numpy()
        found = retrieval(
            images.numpy(), texts.numpy(), group.numpy(), group.numpy(), (1,), (text.numpy(), text.numpy())
        )
        return {**found, "loss": ratio_interval(each, np.ones(len(each)))}

    @torch.no_grad()
    def features(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(images `(N, P)`, texts `(N, P)`, group, text, index `(N,)`) of all ranks' pairs, on the CPU in fp32.

        A pair that comes twice, as one that fills up the batches of several ranks does, counts once.
        """
        module, device = self.module, self.module.device
        was_training = module.training
        module.eval()
        parts = []
        for batch in batches:
            pixels = normalize(batch["pixels"].to(device), self.mean, self.std)
            found = self._features(pixels, batch["ids"].to(device))
            parts.append((*(each.cpu() for each in found), batch["group"], batch["text"], batch["index"]))
        module.train(was_training)
        images, texts, group, text, index = (torch.cat(part) for part in zip(*self.collect(parts), strict=True))
        first = np.sort(np.unique(index.numpy(), return_index=True)[1])
        return images[first], texts[first], group[first], text[first], index[first]

    def samples(self, seed: int) -> list[dict[str, str]]:
        """None: the report shows pictures."""
        return []

    def flops(self, batch: Batch) -> int:
        return len(batch["ids"]) * self.module.flops_per_pair(batch["ids"].shape[1])


def contrastive_nats(
    module: Clip,
    images: Tensor,
    texts: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    positive: Tensor,
    objective: Objective = "infonce",
) -> Tensor:
    """The loss of each row `(B,)`: see `Contrast`.

    Args:
        module: scales the cosines.
        images, texts: features `(B, P)` of the rows.
        all_images, all_texts: those `(N, P)` among which they are.
        positive: `(B, N)` bool, whether a text belongs to a row's picture, and a picture to its text.
    """
    with torch.autocast(images.device.type, enabled=False):
        by_image = module.logits(images, all_texts)
        by_text = by_image.T if all_texts is texts else module.logits(all_images, texts).T
    if objective == "siglip":
        return -F.logsigmoid(torch.where(positive, by_image, -by_image)).sum(1)
    wanted = positive.float() / positive.sum(1, keepdim=True)
    return (
        F.cross_entropy(by_image, wanted, reduction="none") + F.cross_entropy(by_text, wanted, reduction="none")
    ) / 2


def mate_nats(module: Clip, images: Tensor, all_images: Tensor, same: Tensor, itself: Tensor) -> Tensor:
    """Nats for telling each row's picture `(B, P)` by its mates among all others, `(B,)`; 0 where it has none.

    Args:
        module: scales the cosines.
        all_images: those `(N, P)` among which they are.
        same, itself: `(B, N)` bool, which ones are mates of a row's picture, and which one it is.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = (images @ all_images.T * module.scale()).masked_fill(itself, NEVER)
    return F.cross_entropy(logits, same.float() / same.sum(1, keepdim=True).clamp(min=1), reduction="none")


def _random(device: torch.device) -> Any:
    """Where the state of a device's random numbers is."""
    return torch.random if device.type == "cpu" else getattr(torch, device.type)
