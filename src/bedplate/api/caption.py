"""`caption`: what pictures show, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bedplate.api.vision_predict import predict_pictures
from bedplate.errors import InputError
from bedplate.hub.image_model import Images, listed
from bedplate.hub.load import load
from bedplate.hub.reader_model import ReaderModel
from bedplate.train.hardware import choose_device

READER = "zoo:reader-mini"


def caption(
    images: Images,
    *,
    model: ReaderModel | str | Path = READER,
    device: str = "auto",
    progress: Callable[[str], object] = lambda line: None,
    **options: Any,
) -> list[Any]:
    """A caption of each picture, in order.

    In the place of a picture of a folder that cannot be decoded is None.

    Args:
        images: paths (also of folders), bytes, PIL images or arrays, one or several.
        model: a reader, or what `load` takes.
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.
        progress: called with a line for each picture that is left out, and how many these are.
        options: num_beams, length_penalty, max_new_tokens and batch_size, see `ReaderModel.predict`.

    Returns:
        [{"text", "score": probability of the text}].

    Raises:
        InputError: no picture, one that is named or all of a folder that cannot be decoded, or a model that is no
            reader.
    """
    pictures = listed(images)
    if not pictures:
        raise InputError("nothing to caption: give a picture, or a folder of them")
    return predict_pictures(reader(model, device), pictures, progress=progress, **options)


def reader(model: ReaderModel | str | Path, device: str) -> ReaderModel:
    """A reader, loaded where it is not.

    Raises:
        InputError: it is another model.
    """
    loaded = load(model, choose_device(device)) if isinstance(model, str | Path) else model
    if not isinstance(loaded, ReaderModel):
        raise InputError(
            f"{model if isinstance(model, str | Path) else 'the model'}: is no reader, which captions and questions "
            "need; train one (task: answer), or take zoo:reader-mini"
        )
    return loaded
