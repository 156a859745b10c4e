"""Search by meaning: the passages of a folder or file that are nearest to a query.

    python examples/retrieval.py MODEL TEXTS "your query" ["another"] [--top 5] [--column text]

MODEL is what `bedplate.load` takes (a directory, zoo:NAME, hf:ORG/NAME); TEXTS is a folder of .txt files, or a .jsonl,
.csv or .parquet with one text a row. A passage is a run of whole paragraphs of up to `--words` words.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import islice

import bedplate
from bedplate.data.sources import documents


def passages(text: str, words: int) -> Iterator[str]:
    """Runs of whole paragraphs of at most `words` words; a longer paragraph is cut."""
    taken: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        found = paragraph.split()
        if taken and len(taken) + len(found) > words:
            yield " ".join(taken)
            taken = []
        taken += found
        while len(taken) > words:
            yield " ".join(taken[:words])
            taken = taken[words:]
    if taken:
        yield " ".join(taken)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model")
    options.add_argument("texts")
    options.add_argument("queries", nargs="+")
    options.add_argument("--column", default="text")
    options.add_argument("--words", type=int, default=100)
    options.add_argument("--top", type=int, default=5)
    options.add_argument("--most", type=int, default=100_000, help="passages that are read")
    asked = options.parse_args()
    model = bedplate.load(asked.model)
    read = (
        (document.source, passage)
        for document in documents(asked.texts, asked.column)
        for passage in passages("".join(document.pieces), asked.words)
    )
    sources, found = zip(*islice(read, asked.most), strict=True)
    near = model.embed(asked.queries) @ model.embed(found).T
    for query, row in zip(asked.queries, near, strict=True):
        print(f"\n{query}")
        scores, places = row.topk(min(asked.top, len(found)))
        for score, place in zip(scores.tolist(), places.tolist(), strict=True):
            print(f"  {score:.3f}  {sources[place]}  {found[place][:120]}")


if __name__ == "__main__":
    try:
        main()
    except bedplate.InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
