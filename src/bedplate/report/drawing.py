"""The pages of what draws: an image tokenizer, and a model that draws by its codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from bedplate.report.page import by_step, chart, run_report, table, text
from bedplate.report.pictures import grid
from bedplate.report.plot import line_chart

PSNR = (
    "The peak signal-to-noise ratio (PSNR) says how near a picture comes to itself through its codes, in dB: 6 dB more "
    "is half the error. Perplexity is as how many equally frequent codes the codes of the held-out pictures are."
)


def image_tokens_report(record: Mapping[str, Any]) -> str:
    """The page of an image tokenizer: `run_report` with how it learned and `pictures`, (original, rebuilt) PIL images.

    `record` holds "validation" ({"psnr", "codebook_use", "perplexity"}, as metrics) and what `run_report` takes.
    """
    sections = [learning(record, "psnr", "PSNR in dB, higher is better")] if record.get("metrics") else []
    if measured := record.get("validation"):
        names = {"psnr": "PSNR, dB", "codebook_use": "Share of the codes in use", "perplexity": "Perplexity"}
        rows = [[label, _shown(measured[key])] for key, label in names.items()]
        sections.append(("How good it is", [table(rows, ["On held-out pictures", ""]), text(PSNR, muted=True)]))
    if pairs := record.get("pictures"):
        shown = [each for pair in pairs for each in pair]
        captions = ["original", "from its codes"] * len(pairs)
        sections.append(("What its codes keep", [grid(shown, captions, columns=6)]))
    return run_report({**record, "metrics": [], "sections": sections})


def learning(record: Mapping[str, Any], metric: str, label: str) -> tuple[str, list[str]]:
    """The section of a metric of held-out pictures and of the loss."""
    rows = record["metrics"]
    quality = line_chart({"held-out": by_step(rows, f"val_{metric}")}, title=label, x_label="step", y_label=label)
    losses = {"held-out": by_step(rows, "val_loss"), "training": by_step(rows, "loss")}
    loss = line_chart(losses, title="Loss", x_label="step", y_label="lower is better", y_log=True)
    return "How it learned", [chart(quality), chart(loss)] if metric != "loss" else [chart(loss)]


def _shown(metric: Mapping[str, float]) -> str:
    ends = "" if metric["low"] == metric["high"] else f" ({metric['low']:.4g} to {metric['high']:.4g})"
    return f"{metric['value']:.4g}{ends}"


def drawn_by_prompt(drawings: Mapping[str, Sequence[Image.Image]], columns: int) -> str:
    """Drawings of each prompt, a line a prompt."""
    shown = [image for images in drawings.values() for image in images]
    captions = [prompt if n == 0 else " " for prompt, images in drawings.items() for n in range(len(images))]
    return grid(shown, captions, columns=columns)
