"""Measures of drawings with a judge that sees exactly: colours are told by their mean, shapes by their size."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bedplate.data.pairs import Pairs, read_pairs
from bedplate.errors import InputError
from bedplate.measure.drawings import measure_drawings

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
OTHERS = {"grey": (200, 200, 200)}
SIZES = {"wide": (8, 4), "high": (4, 8), "square": (8, 8)}


def _image(size: str, colour: str, noise: int = 0) -> Image.Image:
    canvas = Image.new("RGB", (8, 8))
    canvas.paste((COLOURS | OTHERS)[colour], (0, 0, *SIZES[size]))
    pixels = np.asarray(canvas).astype(int)
    shade = np.random.default_rng(noise).integers(0, 40, 3) if noise else 0
    return Image.fromarray((pixels + shade).clip(0, 255).astype(np.uint8))


class Judge:
    """A vector is the picture itself, of length 1; a text's is that of the picture which it names."""

    def embed(self, inputs: Any, *, truncate: bool = False) -> torch.Tensor:
        images = [_image(*each.lower().split(": ")) if isinstance(each, str) else each for each in inputs]
        pixels = [np.asarray(image, np.float32).ravel() for image in images]
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(pixels)), dim=1)


@dataclass
class Drawer:
    """Draws what it is asked for, with noise by the seed, or always one colour."""

    held_out: list[str]
    colour: str | None = None
    noisy: bool = True
    asked: list[str] = field(default_factory=list)

    def fits(self, text: str) -> bool:
        return True

    def draw(self, prompts: list[str], *, n: int, seed: int) -> list[Image.Image]:
        self.asked += prompts
        parts = [text.lower().split(": ") for text in prompts]
        return [
            _image(size, self.colour or colour, 1 + seed + k + 100 * row if self.noisy else 0)
            for row, (size, colour) in enumerate(parts)
            for k in range(n)
        ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("pairs")
    for size in SIZES:
        for colour in COLOURS:
            for copy in range(2):
                sink = io.BytesIO()
                _image(size, colour, 1000 + copy if copy else 0).save(sink, "PNG")
                (folder / f"{size}-{colour}-{copy}.png").write_bytes(sink.getvalue())
                (folder / f"{size}-{colour}-{copy}.txt").write_text(f"{size.title()}: {colour}", "utf-8")
    return read_pairs(Path(folder))


def _measure(drawer: Drawer, pairs: Pairs, names: int = 8) -> dict[str, Any]:
    return measure_drawings(drawer, pairs, Judge(), names=names, each=3)  # type: ignore[arg-type]


def test_what_draws_right_is_told_right(pairs: Pairs) -> None:
    drawer = Drawer(["wide: red"])
    result = _measure(drawer, pairs)
    metrics = result["metrics"]
    assert result["n"] == 24 and result["names"] == 8
    for name in ("accuracy", "real_accuracy", "held_out_first", "held_out_second", "held_out_both"):
        assert metrics[name]["value"] == 1
    assert metrics["accuracy"]["n"] == 24 and metrics["held_out_both"]["n"] == 3
    assert "Wide: red" in drawer.asked[8:] and "Wide: red" not in drawer.asked[:8]


def test_what_always_draws_red_is_right_in_shape_alone(pairs: Pairs) -> None:
    metrics = _measure(Drawer(["wide: blue", "high: green"], colour="red"), pairs, names=7)["metrics"]
    assert metrics["accuracy"]["value"] == pytest.approx(3 / 7)
    assert metrics["held_out_first"]["value"] == 1
    assert metrics["held_out_second"]["value"] == 0 == metrics["held_out_both"]["value"]
    assert metrics["real_held_out_both"]["value"] == 1, "the judge tells the real pictures"
    assert metrics["frechet"]["value"] > 0.1


def test_copies_are_told_from_new_ones(pairs: Pairs) -> None:
    metrics = _measure(Drawer([], noisy=False), pairs, names=9)["metrics"]
    assert metrics["copied"]["value"] == 1
    assert metrics["frechet"]["value"] == pytest.approx(metrics["frechet_copy"]["value"], abs=1e-6)
    assert "held_out_both" not in metrics
    assert _measure(Drawer([], colour="grey"), pairs)["metrics"]["copied"]["value"] == 0


def test_more_names_than_there_are_is_refused(pairs: Pairs) -> None:
    with pytest.raises(InputError, match="names=10: the data has 9"):
        _measure(Drawer([]), pairs, names=10)
