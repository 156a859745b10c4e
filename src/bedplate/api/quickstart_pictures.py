"""The quickstart's last minute: what the zoo's models make of pictures that are drawn on the spot."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bedplate.api.ask import ask
from bedplate.api.caption import caption
from bedplate.api.draw import BEST_OF, draw
from bedplate.api.predict import predict
from bedplate.data.cells import draw_cells
from bedplate.data.scene_questions import ask_scenes
from bedplate.data.shapes import shapes
from bedplate.hub.load import load
from bedplate.report.adapt import Sections
from bedplate.report.pictures import draw_boxes, grid

CLIP, READER, DRAWER, DETECTOR = MODELS = ("zoo:clip-mini", "zoo:reader-mini", "zoo:draw-mini", "zoo:detect-mini")
PROMPTS = ("red heart", "pizza", "cat face", "sunflower", "rocket", "blue circle")  # drawn, and then chosen between
SCENES, SCENE_SEED = 3, 2024  # of a seed that no training data has
QUESTIONS = 3  # shown of a scene at most
CELLS = (1, 2)  # seeds of drawn blood smears
SURE = 0.5  # least score of a box that is shown


def picture_sections(out: Path) -> tuple[Sections, dict[str, Any]]:
    """Draw, name, caption, ask and detect with the zoo's models; pictures are kept in `out`.

    Returns:
        The report's sections, and {"drawings", "captions", "questions", "cells", "seconds"}: what was found, with what
        is true beside it.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    drawn, drawings = _drawings(out)
    read, captions, questions = _scenes(out)
    found, cells = _cells(out)
    facts = {"drawings": drawings, "captions": captions, "questions": questions, "cells": cells}
    return [*drawn, *read, *found], {**facts, "seconds": time.perf_counter() - started}


def _drawings(out: Path) -> tuple[Sections, list[dict[str, Any]]]:
    """Drawn from words by one model, and chosen and named by another that never saw a drawing of the first."""
    rows = draw(PROMPTS, DRAWER, out=out / "drawings", overwrite=True, best_of=BEST_OF, ranker=CLIP)
    images = [row["image"] for row in rows]
    named = predict(CLIP, images, labels=list(PROMPTS))
    facts = [
        {"prompt": row["prompt"], "label": each["label"], "score": each["score"]}
        for row, each in zip(rows, named, strict=True)
    ]
    captions = [f"“{row['prompt']}”\ntaken for “{row['label']}”, {100 * row['score']:.0f} %" for row in facts]
    right = sum(row["label"] == row["prompt"] for row in facts)
    below = (
        f"{DRAWER} drew these from the words; of {BEST_OF} tries each, {CLIP} chose the one nearest to them, and then "
        f"between the {len(PROMPTS)} prompts: {right} of {len(facts)} as meant. "
        "(A model that chooses cannot judge; docs/multimodal.md has figures from another one.)"
    )
    return [("Drawn from words, and named again", [grid(images, captions, caption=below)])], facts


def _scenes(out: Path) -> tuple[Sections, list[dict[str, Any]], list[dict[str, Any]]]:
    """Composed of shapes on the spot, so that what is true of them is known."""
    scenes = list(ask_scenes(shapes(), SCENES, SCENE_SEED))
    images = [each["scene"]["image"] for each in scenes]
    for number, image in enumerate(images):
        image.save(out / f"scene-{number}.png")
    reader: Any = load(READER)
    written = caption(images, model=reader)
    captions = [{"text": row["text"], "truth": scene["caption"]} for row, scene in zip(written, scenes, strict=True)]
    questions, below = [], []
    for number, scene in enumerate(scenes):
        chosen = scene["questions"][:QUESTIONS]
        answers = ask(images[number], [each.text for each in chosen], model=reader)
        rows = [
            {"scene": number, "question": each.text, "answer": answer["text"], "truth": each.answers[0]}
            for each, answer in zip(chosen, answers, strict=True)
        ]
        questions += rows
        lines = [f"{row['question']} {row['answer']}{_unless(row['answer'], row['truth'])}" for row in rows]
        said = captions[number]
        below.append("\n".join([f"“{said['text']}”{_unless(said['text'], said['truth'])}", *lines]))
    right = sum(row["answer"] == row["truth"] for row in questions)
    end = f"{READER} wrote the captions and answered: {right} of {len(questions)} questions as is true."
    return [("Captions and questions", [grid(images, below, caption=end, wide=220)])], captions, questions


def _cells(out: Path) -> tuple[Sections, list[dict[str, int]]]:
    """Drawn discs that look like red blood cells, for the detector of these."""
    smears = [draw_cells(seed) for seed in CELLS]
    images = [image for image, _ in smears]
    names = [out / f"cells-{seed}.png" for seed in CELLS]
    for image, name in zip(images, names, strict=True):
        image.save(name)
    found = predict(DETECTOR, images, threshold=SURE)
    shown = [
        draw_boxes(image, [row["box"] for row in rows], [row["label"] for row in rows], [row["score"] for row in rows])
        for image, rows in zip(images, found, strict=True)
    ]
    facts = [
        {"drawn": len(boxes), "found": sum(row["label"] == "RBC" for row in rows)}
        for (_, boxes), rows in zip(smears, found, strict=True)
    ]
    below = [f"{row['drawn']} cells drawn, {row['found']} found" for row in facts]
    end = f"{DETECTOR} has learnt from photos of blood smears; these are drawn, as no photo comes with the zoo."
    return [("Detection", [grid(shown, below, caption=end, wide=300)])], facts


def _unless(said: str, truth: str) -> str:
    return "" if said == truth else f" (it is: {truth})"
