"""Sentences of labelled reviews that say what their review says: more rows to teach a classifier of sentences with.

python benchmarks/self_training.py imdb.csv rt-train.csv --test rt-test.csv
python benchmarks/self_training.py imdb.csv rt-train.csv --unlabelled unlabelled.jsonl
python benchmarks/self_training.py imdb.csv rt-train.csv --model runs/rt --out kept.csv
bedplate finetune recipes/classify.yaml base=runs/passages data.path=kept.csv data.max_tokens=64 \\
    train.sequence_length=64 train.epochs=1 train.batch_size=32 data.val_fraction=0.02 out=runs/kept
bedplate finetune recipes/classify.yaml base=runs/kept data.path=rt-train.csv data.test_path=rt-test.csv \\
    train.epochs=2 train.batch_size=32 optimizer.learning_rate=0.0001 out=runs/rt-kept

The files are those of docs/text.md. Two teachers read each sentence of the reviews: logistic regression on TF-IDF of
reviews and sentences, and `--model`, a classifier that was fine-tuned on both. The sum of their scores, each in its own
standard deviations, has to favour the review's label by `--least`; as many sentences of each label are kept. With
`--unlabelled` all sentences are written, without labels, for a teacher of `finetune` (docs/adapt.md), and nothing else
is done.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bedplate
from bedplate.data.labelled import LabelledTexts, read_labelled

WORDS = (5, 45)  # of a sentence that is kept
ROWS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reviews", type=Path)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--model", default="runs/rt")
    parser.add_argument("--least", type=float, default=1.0)
    parser.add_argument(
        "--test", type=Path, help="sentences to score the regression on, which is then all that is done"
    )
    parser.add_argument("--unlabelled", type=Path)
    parser.add_argument("--out", type=Path, default=Path("kept.csv"))
    args = parser.parse_args()
    reviews, taught = read_labelled([str(args.reviews)]), read_labelled([str(args.sentences)])
    styled = [restyled(text) for text in reviews.texts]
    labels = [int(label) for label in (*taught.labels, *reviews.labels)]
    if args.test:
        test = read_labelled([str(args.test)])
        told = counted_words([*taught.texts, *styled], labels, len(taught), test.texts) > 0
        print(f"TF-IDF and logistic regression: {np.mean(told == (np.array(test.labels) == '1')):.1%} of {len(test):,}")
        return
    found = sentences_of(reviews)
    if args.unlabelled:
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in dict.fromkeys(text for text, _ in found)]
        args.unlabelled.write_text("\n".join(rows) + "\n", "utf-8")
        print(f"{len(rows):,} sentences")
        return
    texts, sides = [text for text, _ in found], np.array([1 if label == "1" else -1 for _, label in found])
    votes = [counted_words([*taught.texts, *styled], labels, len(taught), texts), read(args.model, texts)]
    score = sum(vote / vote.std() for vote in votes) * sides
    draw = np.random.default_rng(0)
    of_side = [draw.permutation(np.flatnonzero((score > args.least) & (sides == side))) for side in (1, -1)]
    kept = draw.permutation(np.concatenate([rows[: min(map(len, of_side))] for rows in of_side]))
    with args.out.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *(found[i] for i in kept.tolist())])
    print(f"{len(kept):,} of {len(found):,} sentences are kept; {np.mean(score > 0):.1%} are of the review's label")


def sentences_of(reviews: LabelledTexts) -> list[tuple[str, str]]:
    """(sentence, its review's label), in the style of the sentences."""
    return [
        (sentence, label)
        for text, label in zip(reviews.texts, reviews.labels, strict=True)
        for part in re.split(r"(?<=[.!?])[\"')]*\s+", text)
        if WORDS[0] <= len((sentence := restyled(part)).split()) <= WORDS[1]
    ]


def restyled(text: str) -> str:
    """In small letters with spaces around punctuation, as the sentences of Rotten Tomatoes are written."""
    return re.sub(r"\s+", " ", re.sub(r'\s*([.,!?;:()"]|\.\.\.|--)\s*', r" \1 ", text.lower())).strip()


def counted_words(
    taught: Sequence[str], labels: Sequence[int], sentences: int, texts: Sequence[str]
) -> NDArray[np.float64]:
    """Log odds by logistic regression on words and pairs of words; the first rows, sentences, weigh three times."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\S+")
    weights = np.where(np.arange(len(taught)) < sentences, 3.0, 1.0)
    model = LogisticRegression(C=3, max_iter=300).fit(vectors.fit_transform(taught), labels, sample_weight=weights)
    return np.asarray(model.decision_function(vectors.transform(texts)), np.float64)


def read(name: str, texts: Sequence[str]) -> NDArray[np.float64]:
    """Log odds by a classifier of labels 0 and 1."""
    model, order = bedplate.load(name), np.argsort([len(text) for text in texts], kind="stable")
    odds = np.zeros(len(texts))
    for rows in np.array_split(order, -(-len(texts) // ROWS)):
        for row, told in zip(rows, model.predict([texts[i] for i in rows]), strict=True):
            share = np.clip(told["scores"]["1"], 1e-4, 1 - 1e-4)
            odds[row] = np.log(share / (1 - share))
    return odds


if __name__ == "__main__":
    main()
