"""How much frozen features of images tell of their labels: nearest neighbours and a linear probe.

Both judge a pre-trained encoder without changing it, as DINO was judged (arXiv 2104.14294, section 4.1 and appendix).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.errors import InputError
from bedplate.metrics.classification import accuracy
from bedplate.models.vit import ImagePooling, VisionModel

Rows = tuple[Tensor, Tensor]  # features (N, D), labels (N,) numbered from 0
Scores = dict[str, dict[str, float]]  # {"accuracy": {"value", "low", "high", "n"}}

NEIGHBOURS, TEMPERATURE = 20, 0.07  # DINO's
QUERIES = 512  # whose similarities to all of the training features are held at one time
PENALTIES = tuple(10.0**power for power in range(1, -7, -1))  # the strongest first
HELD_OUT = 0.2  # of each class, on which the penalty is chosen
ITERATIONS = 300


@torch.no_grad()
def features(module: VisionModel, batches: Iterable[Tensor], pooling: ImagePooling = "cls") -> Tensor:
    """Final states of images in batches of normalised pixels `(B, C, H, W)`: `(N, D)`, fp32, on the CPU.

    Args:
        pooling: the state of the class token ("cls"), or the mean of the patches' ("mean").
    """
    was_training = module.training
    module.eval()
    found = []
    for pixels in batches:
        assert pixels.is_floating_point(), "pixels must be normalised"
        states = module.hidden(pixels.to(module.device)).float()
        found.append((states[:, 0] if pooling == "cls" else states[:, 1:].mean(1)).cpu())
    module.train(was_training)
    return torch.cat(found)


def knn(train: Rows, test: Rows, k: int = NEIGHBOURS, temperature: float = TEMPERATURE) -> Scores:
    """Accuracy of a vote of the k training images of the greatest cosine, each of weight exp(cosine / temperature).

    With less than k training images all of them vote.
    """
    known, labels = F.normalize(train[0], dim=1), train[1]
    classes = _classes(train, test)
    predicted = []
    for queries in F.normalize(test[0], dim=1).split(QUERIES):
        cosines, nearest = (queries @ known.t()).topk(min(k, len(known)), dim=1)
        votes = torch.zeros(len(queries), classes, dtype=cosines.dtype, device=cosines.device)
        votes.scatter_add_(1, labels[nearest], (cosines / temperature).exp())
        predicted.append(votes.argmax(1))
    return _scores(test[1], torch.cat(predicted))


def linear_probe(train: Rows, test: Rows, seed: int = 0) -> Scores:
    """Accuracy of a multinomial logistic regression on the features, each less its mean, over its deviation.

    The penalty of its weights is the one of `PENALTIES` with the least nats on a part of the training images; with it
    the regression is fitted to all of them.

    Args:
        seed: of the choice of that part.

    Raises:
        InputError: no class has two training images, so that none can be held out.
    """
    return _scores(test[1], linear_predictions(train, test[0], seed))


def linear_predictions(train: Rows, unseen: Tensor, seed: int = 0, penalty: float | None = None) -> Tensor:
    """Labels `(N,)` of unseen features `(N, D)`, as `linear_probe` foretells them.

    Args:
        penalty: of the weights, in place of one that is chosen.

    Raises:
        InputError: a penalty is to be chosen, and no class has two training images.
    """
    mean, deviation = train[0].mean(0), train[0].std(0, correction=0)
    deviation = deviation.where(deviation > 0, 1.0)
    x, y = (train[0] - mean) / deviation, train[1]
    classes = 1 + int(y.max())
    weight, bias = fit_logistic(x, y, classes, penalty or _choose_penalty(x, y, classes, seed))
    return ((unseen - mean) / deviation @ weight.t() + bias).argmax(1)


def fit_logistic(
    x: Tensor, y: Tensor, classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """(weight `(C, D)`, bias `(C,)`) of least mean nats + penalty / 2 * |weight|^2 on `x (N, D)` and `y (N,)`.

    By L-BFGS on all rows at one time, from `start` or zero. In scikit-learn's terms the penalty is 1 / (C N).
    """
    weight, bias = start or (x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    parameters = [value.detach().clone().requires_grad_() for value in (weight, bias)]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, *parameters), y) + penalty / 2 * parameters[0].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return parameters[0].detach(), parameters[1].detach()


def _choose_penalty(x: Tensor, y: Tensor, classes: int, seed: int) -> float:
    is_held = _held_out(y, seed)
    best, penalty, fitted = float("inf"), PENALTIES[0], None
    for candidate in PENALTIES:
        fitted = fit_logistic(x[~is_held], y[~is_held], classes, candidate, fitted)
        nats = F.cross_entropy(F.linear(x[is_held], *fitted), y[is_held]).item()
        if nats < best:
            best, penalty = nats, candidate
    return penalty


def _held_out(y: Tensor, seed: int) -> Tensor:
    """Which rows are held out, `(N,)`: a share of each class that has two or more, and never all of it."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    is_held = torch.zeros(len(y), dtype=torch.bool)
    labels = y.cpu()[order]
    for label in labels.unique():
        rows = order[labels == label]
        is_held[rows[: max(1, int(HELD_OUT * len(rows))) if len(rows) > 1 else 0]] = True
    if not is_held.any():
        raise InputError("no class has two images, and a linear probe needs some to choose its penalty on; give more")
    return is_held.to(y.device)


def _classes(train: Rows, test: Rows) -> int:
    return 1 + int(max(train[1].max(), test[1].max()))


def _scores(truth: Tensor, predicted: Tensor) -> Scores:
    return {"accuracy": accuracy(truth.cpu().numpy(), predicted.cpu().numpy())}
