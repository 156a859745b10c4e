"""What a model draws, judged by one that knows texts and pictures: is it what it should be, and is it new?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from bedplate.data.combinations import name_parts
from bedplate.data.pairs import Pairs
from bedplate.errors import InputError
from bedplate.hub.draw_model import DrawModel
from bedplate.metrics.frechet import frechet_distance, nearest
from bedplate.metrics.intervals import ratio_interval

Metrics = dict[str, dict[str, float]]
Numbers = npt.NDArray[np.float64]

COPY_PERCENTILE = 1.0
NAMES = 100


class Judge(Protocol):
    """A model that was trained apart, such as `hub.clip_model.ClipModel`."""

    def embed(self, inputs: Any, *, truncate: bool = False) -> Tensor:
        """Vectors `(N, P)` of length 1 of texts (strings, cut where they are too long) or of pictures, in one space."""


@dataclass(frozen=True)
class Drawn:
    """Pictures that were drawn of names, `each` of a name, name by name, and their vectors `(names x each, P)`."""

    names: Sequence[str]
    images: Sequence[Image.Image]
    vectors: Numbers


def measure_drawings(
    model: DrawModel,
    data: Pairs,
    judge: Judge,
    *,
    names: int | None = None,
    each: int = 4,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Draw names of the data and judge them.

    Args:
        data: what the model was trained on (and held out by itself).
        names: how many of the names that training saw are drawn, and told apart (default: 100, or all of fewer).
        each: drawings of a name.
        seed: chooses the names, and is that of each name's first drawing.
        options: of `DrawModel.draw`, or with a `ranker` of `DrawModel.draw_best`; one that is the judge says nothing.

    Returns:
        {"n": drawings, "metrics", "names", "threshold"} with the metrics

        - accuracy: the share of drawings whose own name is the nearest of all `names`, and real_accuracy, that of real
          pictures of these names;
        - frechet: the distance of drawings from real pictures of the same names, and frechet_copy, that of the real
          pictures that are nearest to the drawings;
        - copied: the share of drawings nearer to a picture of the training than `threshold`, which only
          `COPY_PERCENTILE` % of training pictures are to the nearest one of another name;
        - where the model has names that it never saw: held_out_first and held_out_second, the shares of their drawings
          in which that part of the name is told right among all combinations, and held_out_both; with real_ before
          them the same of the real pictures of these names, the most that can be expected.

    Raises:
        InputError: fewer names than are to be drawn.
    """
    unseen = {name.lower() for name in model.held_out}
    held = sorted({texts[0] for texts in data.texts if texts[0].lower() in unseen})
    seen = [i for i, texts in enumerate(data.texts) if texts[0].lower() not in unseen]
    train, generator = data.select(seen), np.random.default_rng(seed)
    known = sorted({texts[0] for texts in train.texts if model.fits(texts[0])})
    names = min(NAMES, len(known)) if names is None else names
    if len(known) < max(2, names):
        raise InputError(f"names={names}: the data has {len(known)} names that the model can draw; give fewer")
    chosen = [known[i] for i in sorted(generator.permutation(len(known))[:names].tolist())]
    drawn = _drawn(model, judge, chosen, each, seed, options)
    real = train.select([i for i, texts in enumerate(train.texts) if texts[0] in set(chosen)])
    every, of_names = _vectors(judge, train), _texts(judge, chosen)
    own = _vectors(judge, real)
    place = {name: number for number, name in enumerate(chosen)}
    metrics: Metrics = {
        "accuracy": _share(_best(drawn.vectors, of_names) == np.repeat(np.arange(len(chosen)), each), each),
        "real_accuracy": _share(_best(own, of_names) == [place[texts[0]] for texts in real.texts], 1),
    }
    distances, copies = nearest(drawn.vectors, every)
    threshold = _copy_threshold(every, [texts[0].lower() for texts in train.texts])
    metrics["copied"] = _share(distances < threshold, each)
    for name, other in (("frechet", drawn.vectors), ("frechet_copy", every[copies])):
        value = frechet_distance(other, own)
        metrics[name] = {"value": value, "low": value, "high": value, "n": len(other)}
    if held:
        metrics |= _composition(model, judge, data, held, each, seed, options)
    return {"n": len(drawn.images), "metrics": metrics, "names": len(chosen), "threshold": threshold}


def _composition(
    model: DrawModel,
    judge: Judge,
    data: Pairs,
    held: Sequence[str],
    each: int,
    seed: int,
    options: dict[str, Any],
) -> Metrics:
    """Whether names that training never saw are drawn so that both of their parts are told right.

    The choice is between all names of the data whose first part is that of a held-out one.
    """
    held = [name for name in held if model.fits(name)]
    firsts = {_parts(name)[0] for name in held}
    names = sorted({texts[0] for texts in data.texts})
    among = [name for name in names if (two := name_parts(name)) and two[0] in firsts]
    of_names = _texts(judge, among)

    def told(vectors: Numbers, truth: Sequence[str], each: int, prefix: str) -> Metrics:
        best = [_parts(among[i]) for i in _best(vectors, of_names)]
        right = np.array(
            [[a == b for a, b in zip(one, _parts(n), strict=True)] for one, n in zip(best, truth, strict=True)]
        )
        sides = {"first": right[:, 0], "second": right[:, 1], "both": right.all(1)}
        return {f"{prefix}_{name}": _share(side, each) for name, side in sides.items()}

    drawn = _drawn(model, judge, held, each, seed, options)
    real = data.select([i for i, texts in enumerate(data.texts) if texts[0] in set(held)])
    return {
        **told(drawn.vectors, [name for name in held for _ in range(each)], each, "held_out"),
        **told(_vectors(judge, real), [texts[0] for texts in real.texts], 1, "real_held_out"),
    }


def _parts(name: str) -> tuple[str, str]:
    parts = name_parts(name)
    assert parts is not None, f"{name!r} has two parts"
    return parts


def _drawn(
    model: DrawModel, judge: Judge, names: Sequence[str], each: int, seed: int, options: dict[str, Any]
) -> Drawn:
    if "ranker" in options:
        images = [image for _, image in model.draw_best(names, n=each, seed=seed, **options)]
    else:
        images = model.draw(names, n=each, seed=seed, **options)
    return Drawn(names, images, judge.embed(images).numpy().astype(np.float64))


def _vectors(judge: Judge, pairs: Pairs) -> Numbers:
    parts = [
        judge.embed([ref.image() for ref in pairs.images[first : first + 256]]) for first in range(0, len(pairs), 256)
    ]
    return torch.cat(parts).numpy().astype(np.float64)


def _texts(judge: Judge, names: Sequence[str]) -> Numbers:
    return judge.embed(list(names), truncate=True).numpy().astype(np.float64)


def _best(vectors: Numbers, texts: Numbers) -> npt.NDArray[np.int64]:
    """The number of the text that is nearest to each picture."""
    return (vectors @ texts.T).argmax(1)


def _copy_threshold(vectors: Numbers, names: Sequence[str]) -> float:
    """The distance below which `COPY_PERCENTILE` % of pictures have a picture of another name."""
    number = np.unique(np.array(names, object), return_inverse=True)[1]
    gaps = np.empty(len(vectors))
    for first in range(0, len(vectors), 256):
        part = slice(first, first + 256)
        squares = 2 - 2 * vectors[part] @ vectors.T  # all have length 1
        squares[number[part, None] == number] = np.inf
        gaps[part] = np.sqrt(squares.min(1).clip(min=0))
    return float(np.percentile(gaps, COPY_PERCENTILE))


def _share(right: npt.ArrayLike, each: int) -> dict[str, float]:
    """The share that is right, with its interval over names: drawings of one name are alike."""
    sums = np.asarray(right, np.float64).reshape(-1, each).sum(1)
    found = ratio_interval(sums, np.full(len(sums), each))
    return found | {"n": len(sums) * each}
