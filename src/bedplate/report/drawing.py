"""The pages of what draws: an image tokenizer, and a model that draws by its codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report.page import by_step, chart, run_report, table, text
from bedplate.report.pictures import grid
from bedplate.report.plot import line_chart

PSNR = (
    "The peak signal-to-noise ratio (PSNR) says how near a picture comes to itself through its codes, in dB: 6 dB more "
    "is half the error. Perplexity is as how many equally frequent codes the codes of the held-out pictures are."
)
CHOSEN = "Names and seeds are drawn by the seed of the run, not by hand."


def image_tokens_report(record: Mapping[str, Any]) -> str:
    """The page of an image tokenizer: `run_report` with how it learned and `pictures`, (original, rebuilt) PIL images.

    `record` holds "validation" ({"psnr", "codebook_use", "perplexity"}, as metrics) and what `run_report` takes.
    """
    sections: list[tuple[str, list[str]]] = []
    if record.get("metrics"):
        sections.append(learning(record["metrics"], "PSNR in dB, higher is better", held_out="val_psnr"))
    if measured := record.get("validation"):
        names = {"psnr": "PSNR, dB", "codebook_use": "Share of the codes in use", "perplexity": "Perplexity"}
        rows = [[label, _shown(measured[key])] for key, label in names.items()]
        sections.append(("How good it is", [table(rows, ["On held-out pictures", ""]), text(PSNR, muted=True)]))
    if pairs := record.get("pictures"):
        shown = [each for pair in pairs for each in pair]
        captions = ["original", "from its codes"] * len(pairs)
        sections.append(("What its codes keep", [grid(shown, captions, columns=6)]))
    return run_report({**record, "metrics": [], "sections": sections})


def learning(rows: Sequence[Mapping[str, Any]], label: str, **lines: str) -> tuple[str, list[str]]:
    """The section of what was measured while training, from the rows of metrics.jsonl: one chart of these lines."""
    points = {name.replace("_", " "): by_step(rows, key) for name, key in lines.items()}
    return "How it learned", [chart(line_chart(points, title=label, x_label="step", y_label=label))]


def _shown(metric: Mapping[str, float]) -> str:
    ends = "" if metric["low"] == metric["high"] else f" ({metric['low']:.4g} to {metric['high']:.4g})"
    return f"{metric['value']:.4g}{ends}"


def draw_report(record: Mapping[str, Any]) -> str:
    """The page of a model that draws: `run_report` with how it learned and `drawings`, {heading: {prompt: PIL images}}.

    `record` holds "each", drawings of a prompt, and what `run_report` takes.
    """
    sections: list[tuple[str, list[str]]] = []
    if record.get("metrics"):
        lines = {"held_out": "val_loss", "held_out_without_its_text": "val_loss_without_text", "training": "loss"}
        sections.append(learning(record["metrics"], "nats a code, lower is better", **lines))
    for heading, drawings in record["drawings"].items():
        shown = [image for images in drawings.values() for image in images]
        captions = [prompt for prompt, images in drawings.items() for _ in images]
        sections.append((heading, [grid(shown, captions, columns=record["each"])]))
    if record["drawings"]:
        sections[-1][1].append(text(CHOSEN, muted=True))
    return run_report({**record, "metrics": [], "sections": sections})
