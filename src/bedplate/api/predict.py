"""`predict`: a model on what a person has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.api.multimodal import predict_multimodal
from bedplate.api.vision_predict import predict_images
from bedplate.api.zeroshot import read_examples
from bedplate.data.sources import documents, kind_of
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel, listed
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.text import strings
from bedplate.tasks.zeroshot import Example, Labels
from bedplate.train.hardware import choose_device


def predict(
    model: Model | ImageModel | MultimodalModel | str | Path,
    inputs: Any = (),
    *,
    file: str | Path | None = None,
    column: str | None = None,
    device: str = "auto",
    adapter: str | Path | None = None,
    labels: Labels | None = None,
    examples: str | Path | Sequence[Example | Mapping[str, str]] | None = None,
    shots: int | None = None,
    seed: int | None = None,
    draw: str | Path | None = None,
    attention: bool = False,
    overwrite: bool = False,
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """Predictions, one an input, in order.

    Args:
        model: a model, or what `load` takes.
        inputs: texts; of a model of images pictures: paths (also of folders), bytes, PIL images or arrays.
        file: texts in place of `inputs`: a .txt is one, in other formats each row is one; or a table of pictures.
        column: column of the text in `file` (default: text; of pictures: guessed).
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        adapter: a LoRA adapter to put on it, for a model that is loaded here.
        labels: what a model that has not learnt them chooses between: "sports,politics", a list, or {name: words}.
        examples: of these labels: a file of labelled texts (`text` and `label` are guessed), or pairs of both.
        shots: examples of each label that are drawn from a file (default: 4), by the seed.
        seed: of these examples (default: 0), or of what a model writes or draws by chance.
        draw: of a model of images, where its picture is written with what was found, see `predict_images`.
        attention: beside that, where the model looks.
        overwrite: replace files that are there.
        progress: called with lines about pictures that are left out, and about the drawing.
        options: those of `Model.predict`; with labels, those of `hub.zeroshot.ZeroShot`.

    Returns:
        [{"label", "score", "scores"}] of a classifier or with labels, [{"text"}] of a summariser or another language
        model, [[{"label", "score", "box"}]] of a detector; None in the place of a picture of a folder or of `file` that
        cannot be decoded.

    Raises:
        InputError: nothing to predict, both texts and a file, or an empty text.
    """
    loaded = load(model, choose_device(device), adapter=adapter) if isinstance(model, str | Path) else model
    if isinstance(loaded, MultimodalModel):
        return predict_multimodal(
            loaded,
            listed(inputs),
            file=file,
            column=column,
            others={
                "examples": examples,
                "shots": shots,
                "draw": draw,
                "attention": attention or None,
            },
            labels=labels,
            seed=seed,
            progress=progress,
            **options,
        )
    if isinstance(loaded, ImageModel):
        given = {"labels": labels, "examples": examples, "shots": shots, "seed": seed}
        if name := next((name for name, value in given.items() if value is not None), None):
            raise InputError(f"{name} is for models of text; this is a model of images with labels of its own")
        options |= {"draw": draw, "attention": attention, "overwrite": overwrite, "progress": progress}
        return predict_images(loaded, listed(inputs), file=file, column=column, **options)
    of_images = {"draw": draw, "attention": attention or None, "threshold": options.get("threshold")}
    if name := next((name for name, value in of_images.items() if value is not None), None):
        raise InputError(f"{name} is for models of images, and this is a model of text")
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    if texts and file is not None:
        raise InputError("give either texts or a file, not both")
    if column is not None and file is None:
        raise InputError(f"column={column!r} is of a file; give the file as well")
    if hit := next((text for text in texts if isinstance(text, str) and kind_of(text) and os.path.isfile(text)), None):
        raise InputError(f"{hit}: is a file; give it as file (--file {hit}), or its text")
    named = (
        [(f"text {number}", text) for number, text in enumerate(strings(texts, "text"), 1)]
        if file is None
        else _read(file, column or "text")
    )
    if not named:
        raise InputError("nothing to predict: give a text, or a file")
    for name, text in named:
        if not text.strip():
            raise InputError(f"{name}: the text is empty; remove it or fill it in")
    chosen = label_options(labels, examples, shots, seed or 0, options)
    if seed is not None and not isinstance(examples, str | Path):
        if labels is not None:
            raise InputError(f"seed={seed} draws examples from a file; give one as examples, or leave it out")
        chosen["seed"] = seed  # of what is written; what writes nothing by chance says that it has none
    options |= chosen
    return loaded.predict([text for _, text in named], **options)


def label_options(
    labels: Labels | None,
    examples: str | Path | Sequence[Example | Mapping[str, str]] | None,
    shots: int | None,
    seed: int,
    others: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of `ZeroShot` that say what is chosen between; empty where there are no labels.

    Raises:
        InputError: an option that needs labels without any, shots without a file, and what `read_examples` raises.
    """
    given = {"examples": examples, "shots": shots} | {
        key: others.get(key) for key in ("method", "template", "calibrate")
    }
    if labels is None:
        if name := next((name for name, value in given.items() if value is not None), None):
            raise InputError(f"{name} is for a choice between labels; give labels as well, such as sports,politics")
        return {}
    if not isinstance(examples, str | Path):
        if shots is not None:
            raise InputError(f"shots={shots} draws from a file of examples; give one as examples")
        return {"labels": labels, "examples": examples or ()}
    return {"labels": labels, "examples": read_examples(examples, labels, shots, seed)}


def _read(file: str | Path, column: str) -> list[tuple[str, str]]:
    if kind_of(str(file)) is None and not Path(file).is_dir() and Path(file).exists():
        raise InputError(f"{file}: unknown format; give .txt, .jsonl, .csv, .tsv or .parquet")
    return [(document.source, "".join(document.pieces)) for document in documents(file, column)]
