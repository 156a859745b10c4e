"""What a CLIP is measured on: labels that nobody taught it, or which text belongs to which picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.api.folders import cache_folder
from bedplate.api.vision_predict import check_parts, left_out
from bedplate.data.image_files import LabelledImages, read_images
from bedplate.data.image_refs import Pictures
from bedplate.data.pairs import Pairs, read_pairs
from bedplate.data.pixel_store import PixelStore
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.clip_texts import PLACE, checked_templates
from bedplate.metrics.classification import accuracy, confusion_matrix, macro_f1
from bedplate.metrics.proportion import proportion
from bedplate.metrics.retrieval import retrieval
from bedplate.tasks.zeroshot import Labels, check_label, read_labels

ROWS = 64  # pictures at one time
TOP = 5
FEW = 50  # labels up to which it is told which were taken for which


def measure_clip(
    model: ClipModel,
    data: Sequence[str],
    *,
    column: str | None = None,
    label: str | None = None,
    labels: Labels | None = None,
    template: str | Sequence[str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure a CLIP on labelled pictures (zero-shot classification) or on pictures with texts (retrieval).

    With `column`, the pictures' texts are in that column or key; with `label` or `labels`, they have labels. With
    neither, they have labels where `data.image_files.read_images` finds some (a folder for each label, a column that is
    called so), else texts.

    Args:
        column: of the texts, or several as name,keywords, of which the first holds what is looked for.
        label: column of the labels.
        labels: what the model reads for each label, such as "cat=a tabby cat,dog"; default: the labels themselves.
        template: one or several with {label}. Of labelled pictures the model's own by default; of pairs the plain text.

    Returns:
        {"n", "unit": "pictures" or "pairs", "metrics": {name: {"value", "low", "high", "n"}}, "baselines": {name: the
        same}, "data": what was left out, and of pairs "cut", how many texts are longer than the model reads}. Of
        labelled pictures `accuracy`, `accuracy_top5`, `macro_f1`, with "labels", and "confusion" where these are few;
        of pairs recall both ways, see `metrics.retrieval`.

    Raises:
        InputError: pictures with neither, labels that `labels` does not have, or both columns.
    """
    if options:
        raise InputError(
            f"{next(iter(options))} is no option of a CLIP; it is measured on data by column, label, labels, template"
        )
    if column is not None and (label is not None or labels is not None):
        raise InputError("column names texts, label and labels are of labelled pictures: give one of the two")
    if column is not None:
        return _retrieval(model, _pairs(data, column), template)
    if label is not None or labels is not None:
        images = read_images(list(data), label=label, to_learn=label is None)
        check_parts(images.dropped, data)
        return _zero_shot(model, images, labels, template)
    try:
        images = read_images(list(data))
    except InputError as no_labels:
        try:
            pairs = read_pairs(list(data), key="--column")
        except InputError:
            raise no_labels from None
        check_parts(pairs.dropped, data)
        return _retrieval(model, pairs, template)
    check_parts(images.dropped, data)
    if images.labels is None:
        return _retrieval(model, _pairs(data), template)
    return _zero_shot(model, images, labels, template)


def _pairs(data: Sequence[str], column: str | None = None) -> Pairs:
    pairs = read_pairs(list(data), text=column, key="--column")
    check_parts(pairs.dropped, data)
    return pairs


def _zero_shot(
    model: ClipModel, images: LabelledImages, labels: Labels | None, template: str | Sequence[str] | None
) -> dict[str, Any]:
    if images.labels is None:
        raise InputError(
            f"{images.images[0].where}: the pictures have no labels; give a folder for each label, or name their "
            "column by label"
        )
    words = read_labels(labels if labels is not None else {name: name for name in images.classes})
    names = list(words)
    store = _store(model, images)
    truth = np.array(
        [names.index(check_label(images.labels[i], names, images.images[i].where)) for i in store.usable], np.int64
    )
    vectors = model.label_vectors(words, template)
    order = np.concatenate([(part @ vectors.T).argsort(1, descending=True).numpy() for part in _images(model, store)])
    majority = np.full(len(truth), np.bincount(truth).argmax())
    metrics = {"accuracy": accuracy(truth, order[:, 0])}
    if len(names) > TOP:
        metrics[f"accuracy_top{TOP}"] = proportion((order[:, :TOP] == truth[:, None]).any(1))
    metrics["macro_f1"] = macro_f1(truth, order[:, 0], len(names))
    matrix = confusion_matrix(truth, order[:, 0], len(names))
    return {
        "n": len(truth),
        "unit": "pictures",
        "metrics": metrics,
        "baselines": {
            "chance": {"accuracy": _known(1 / len(names), len(truth))},
            "majority": {"accuracy": accuracy(truth, majority)},
        },
        "data": left_out(images.dropped, store),
        "labels": names,
        **({"confusion": matrix.tolist()} if len(names) <= FEW else {}),
    }


def _retrieval(model: ClipModel, pairs: Pairs, template: str | Sequence[str] | None) -> dict[str, Any]:
    store = _store(model, pairs)
    group = pairs.targets
    whole = pairs.whole or [len(texts) for texts in pairs.texts]
    # A text that several pictures of a group have is looked for, and found, once.
    found = dict.fromkeys((text, int(group[i])) for i in store.usable for text in pairs.texts[i][: whole[i]])
    texts, of_text = [text for text, _ in found], np.array([number for _, number in found], np.int64)
    total, cut = torch.zeros(len(texts), model.config.projection_dim), np.zeros(len(texts), bool)
    for sentence in (PLACE,) if template is None else checked_templates(template):
        written = [sentence.replace(PLACE, text) for text in texts]
        total += model.embed(written, truncate=True)
        cut |= [model.token_count(text) > model.config.text.max_position_embeddings for text in written]
    images = torch.cat(list(_images(model, store)))
    of_image = group[store.usable]
    number = {text: n for n, text in enumerate(dict.fromkeys(texts))}
    marks = np.array([number[text] for text in texts])
    own = np.full((len(images), max(whole)), -1)
    for row, i in zip(own, store.usable, strict=True):
        row[: whole[i]] = [number[text] for text in pairs.texts[i][: whole[i]]]
    metrics = retrieval(images.numpy(), F.normalize(total, dim=1).numpy(), of_image, of_text, marks=(own, marks))
    # The texts of its group, and those like its own of others.
    others = np.where(own < 0, 0, np.bincount(marks)[own] - 1).sum(1)
    chance = float(np.mean(np.bincount(of_text, minlength=group.max() + 1)[of_image] + others) / len(texts))
    return {
        "n": len(images),
        "unit": "pairs",
        "metrics": metrics,
        "baselines": {"chance": {"image_to_text_r1": _known(chance, len(images))}},
        "data": {
            **left_out(pairs.dropped, store),
            "texts": len(texts),
            "cut": int(cut.sum()),
            "groups": len(set(of_text.tolist())),
        },
    }


def _store(model: ClipModel, pictures: Pictures) -> PixelStore:
    return PixelStore(pictures, model.processor.size, model.processor.fit, cache_folder(None) / "images")


@torch.inference_mode()
def _images(model: ClipModel, store: PixelStore) -> Iterator[Tensor]:
    """Vectors of length 1 of the pictures that are not broken, a batch at a time, fp32 on the CPU."""
    dtype = model.module.vision.cls_token.dtype
    for first in range(0, len(store.usable), ROWS):
        pixels = torch.from_numpy(store.pixels(store.usable[first : first + ROWS])).to(model.module.device)
        features = model.module.image_features(model.processor.normalize(pixels).to(dtype))
        yield F.normalize(features.float(), dim=1).cpu()


def _known(value: float, n: int) -> dict[str, float]:
    """A figure that is known and not estimated."""
    return {"value": value, "low": value, "high": value, "n": n}
