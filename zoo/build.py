"""Make a folder of the zoo from a run: weights in bf16, and a card with what the run record cannot know.

    python zoo/build.py runs/text-mini text-mini --notes zoo/text-mini.yaml --figures blimp.json books.json
    python zoo/build.py runs/vision-mini vision-mini --notes zoo/vision-mini.yaml --figures cifar10-test.json

`--notes` is YAML with `description`, `license`, `data` and `limits`. `--figures` hold what `bedplate evaluate --json`
prints: the card lists their metrics under the name of the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml

import bedplate
from bedplate.api.record import as_used
from bedplate.api.run import without_paths
from bedplate.hub.card import model_card
from bedplate.recipe import PICTURES, Recipe, VisionRecipe, task_of
from bedplate.recipe.multimodal import RECIPES
from bedplate.recipe.read import read_as
from bedplate.train.log import read_rows

ZOO = Path(__file__).parent / "src" / "bedplate_zoo"
CURVES = {
    "classify_images": ("val_accuracy", "held-out accuracy"),
    "detect": ("val_map_50", "held-out mAP@50"),
    "mae": ("val_loss", "held-out loss"),
    "contrast": ("val_text_to_image_r1", "held-out text to image R@1"),
    "answer": ("val_accuracy", "held-out accuracy"),
    "draw": ("val_loss", "held-out nats a code"),
}
LARGEST = 15 * 2**20  # bytes of a file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory of bedplate pretrain")
    parser.add_argument("name", help="the folder in the zoo")
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--figures", type=Path, nargs="*", default=[])
    args = parser.parse_args()

    model = bedplate.load(args.run, dtype="fp32")
    model.module.to(torch.bfloat16)
    task = task_of(args.run / "recipe.yaml")
    kind = RECIPES.get(task) or (VisionRecipe if task in PICTURES else Recipe)
    key, what = CURVES.get(task, ("val_bits_per_byte", "held-out bits per byte"))
    record = {
        "name": args.name,
        "command": "",
        "recipe": as_used(read_as(kind, args.run / "recipe.yaml").model_dump(mode="json")),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "hardware": json.loads((args.run / "environment.json").read_text("utf-8"))["hardware"],
        "curve": curve(args.run, key),
        "curve_of": what,
        "metrics": {
            f"{file.stem}: {name}": metric
            for file in args.figures
            for name, metric in json.loads(file.read_text("utf-8"))["metrics"].items()
        },
    }
    if task in PICTURES or task in RECIPES:
        record |= {"images": task, "image_size": list(model.processor.size)}
    else:
        record |= {"family": model.config.family}
    if task in PICTURES:
        record |= {"classes": model.labels}
    record = without_paths(record, "pretrain") | {"command": f"bedplate pretrain recipes/{args.name}.yaml"}
    card = model_card(record | yaml.safe_load(args.notes.read_text("utf-8")))
    model.card = card.replace('bedplate.load("path/to/this/folder")', f'bedplate.load("zoo:{args.name}")')
    model.save(ZOO / args.name, overwrite=True)
    sizes = {file.name: file.stat().st_size for file in (ZOO / args.name).iterdir()}
    too_large = [name for name, size in sizes.items() if size > LARGEST]
    if too_large:
        raise SystemExit(f"{', '.join(too_large)}: larger than 15 MiB; make the model smaller")
    print(f"{ZOO / args.name}: {sum(sizes.values()) / 2**20:.1f} MiB")


def curve(run: Path, key: str) -> list[tuple[int, float]]:
    """(step, what was measured) of every evaluation."""
    return [(row["step"], row[key]) for row in read_rows(run / "metrics.jsonl") if key in row]


if __name__ == "__main__":
    main()
