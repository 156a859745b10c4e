"""`draw`: pictures from texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from bedplate.data.images import SUFFIXES, Source
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.draw_model import GUIDANCE, KEEP, TEMPERATURE, DrawModel
from bedplate.hub.load import load
from bedplate.hub.options import check_kinds
from bedplate.hub.text import strings
from bedplate.train.hardware import choose_device

MODEL, RANKER = "zoo:draw-mini", "zoo:clip-mini"
BEST_OF = 16  # the zoo's models take less than a CPU second for these


def draw(
    prompts: str | Sequence[str],
    model: DrawModel | str | Path = MODEL,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    n: int = 1,
    seed: int = 0,
    guidance: float = GUIDANCE,
    temperature: float = TEMPERATURE,
    top_k: int | None = None,
    prefix: Source | None = None,
    keep: float | None = None,
    best_of: int | None = None,
    ranker: ClipModel | str | Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Draw `n` pictures of each prompt.

    Args:
        model: a model that draws, or what `load` takes.
        out: the file of a picture (several become NAME-1.png, NAME-2.png, ...), or a folder, whose files are named
            after their prompts. Without it nothing is written.
        overwrite: replace files that are there.
        seed: of a prompt's first picture; the next has seed + 1.
        guidance: how closely the text is followed; 1 is the model as it was trained.
        temperature: 0 draws the likeliest codes; higher is bolder.
        top_k: draw from so many codes only.
        prefix: a picture whose upper rows every drawing begins with; `keep` is their share (default: a half).
        best_of: of so many drawings each picture is the one that `ranker` finds nearest to the prompt (default: 16
            of zoo:draw-mini or where there is a ranker, else 1).
        ranker: a CLIP, or what `load` takes (default: zoo:clip-mini).
        device: auto (the first GPU, else the CPU), cpu, cuda or mps, for a model that is loaded here.

    Returns:
        [{"prompt", "seed", "image": a PIL image, "file": where it was written, or None}], prompt by prompt; a picture
        that was chosen has the seed that draws it alone.

    Raises:
        InputError: no prompt, one that is empty or too long, a model that does not draw, a ranker that is no CLIP, or a
            file that is there.
    """
    texts = strings(prompts, "prompt")
    if best_of is None:
        best_of = BEST_OF if model == MODEL or ranker is not None else 1
    check_kinds(Integral, n=n, best_of=best_of)
    if not texts:
        raise InputError("nothing to draw: give a text")
    if prefix is None and keep is not None:
        raise InputError("keep is the share of a prefix's rows; give a prefix, too")
    for name, value in (("n", n), ("best_of", best_of)):
        if value < 1:
            raise InputError(f"{name}={value}: give 1 or more")
    if ranker is not None and best_of == 1:
        raise InputError(f"ranker={ranker}: it chooses between drawings; give best_of, how many, above 1")
    files: Sequence[Path | None] = [None] * (len(texts) * n)
    if out is not None:  # what cannot be written is refused before the work
        files = targets(Path(out).expanduser(), texts, n, overwrite=overwrite)
    loaded = load(model, choose_device(device)) if isinstance(model, str | Path) else model
    if not isinstance(loaded, DrawModel):
        raise InputError(f"{model}: does not draw; give a model of task: draw (recipes/draw.yaml)")
    options: dict[str, Any] = {"guidance": guidance, "temperature": temperature, "top_k": top_k, "prefix": prefix}
    options |= {"n": n, "seed": seed, "keep": KEEP if keep is None else keep}
    if best_of > 1:
        chooser = clip_of(ranker or RANKER, loaded.module.device, "ranker")
        chosen = loaded.draw_best(texts, chooser, best_of, **options)
    else:
        seeds = [seed + k for _ in texts for k in range(n)]
        chosen = list(zip(seeds, loaded.draw(texts, **options), strict=True))
    for (_, image), file in zip(chosen, files, strict=True):
        if file is not None:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
            except OSError as error:
                raise InputError(f"{file}: cannot be written ({error}); give another place") from error
    return [
        {"prompt": texts[i // n], "seed": own, "image": image, "file": None if file is None else str(file)}
        for i, ((own, image), file) in enumerate(zip(chosen, files, strict=True))
    ]


def clip_of(model: ClipModel | str | Path, device: torch.device, what: str) -> ClipModel:
    """The CLIP that judges drawings or chooses between them; `what` it is called in errors.

    Raises:
        InputError: it is none.
    """
    clip = load(model, device) if isinstance(model, str | Path) else model
    if not isinstance(clip, ClipModel):
        raise InputError(f"{what}={model}: does not know texts and pictures; give a CLIP (task: contrast)")
    return clip


def targets(out: Path, prompts: Sequence[str], n: int, *, overwrite: bool) -> list[Path]:
    """The file of each of `n` pictures of each prompt.

    Raises:
        InputError: a name that is no picture's, or a file that is there and is not to be replaced.
    """
    count = len(prompts) * n
    if out.is_dir() or not out.suffix:
        names: list[str] = []
        for prompt in prompts:
            stem = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")[:60] or "drawing"
            while stem in names:  # another prompt of the same words
                stem += "-again"
            names.append(stem)
        files = [out / (f"{name}-{k + 1}.png" if n > 1 else f"{name}.png") for name in names for k in range(n)]
    elif out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: give the name of a picture, such as heart.png, or a folder")
    else:
        files = [out.with_name(f"{out.stem}-{k + 1}{out.suffix}") for k in range(count)] if count > 1 else [out]
    if not overwrite and (hit := next((file for file in files if file.exists()), None)):
        raise InputError(f"{hit}: the file exists; give another name, or overwrite it (--overwrite)")
    return files
