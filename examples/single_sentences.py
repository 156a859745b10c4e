"""Writes the sentences of books and reviews in random order, a document each.

python examples/single_sentences.py books/train.tar.xz reviews.jsonl --out sentences.jsonl --share 0.5

A language model that has only read whole books takes a lone sentence for the beginning of one. Beside the whole texts,
`bedplate pretrain ... data.path="[books/train.tar.xz,reviews.jsonl,sentences.jsonl]"` reads such sentences as they are.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import bedplate
from bedplate.data.sources import documents

ENDS = re.compile(r"(?<=[.!?])[\"'”’)]*\s+(?=[\"'“‘(]*[A-Z])")
WORDS = range(3, 61)  # of a sentence that is kept


def sentences(text: str) -> Iterator[str]:
    """Cut behind a full stop, mark or closing quote where white space and a capital follow, and at line ends."""
    for line in text.split("\n"):
        line, start = line.strip(), 0
        for match in ENDS.finditer(line):
            yield line[start : match.end()].strip()
            start = match.end()
        yield line[start:].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", help="text in any form that `pretrain` reads")
    parser.add_argument("--out", type=Path, default=Path("sentences.jsonl"))
    parser.add_argument("--share", type=float, default=1.0, help="share of the sentences that is written")
    args = parser.parse_args()
    texts = ("".join(document.pieces) for document in documents(args.paths))
    found = [one for text in texts for one in sentences(text) if len(one.split()) in WORDS]
    random.Random(0).shuffle(found)
    kept = found[: round(args.share * len(found))]
    args.out.write_text("".join(json.dumps({"text": one}, ensure_ascii=False) + "\n" for one in kept), "utf-8")
    print(f"{len(kept):,} of {len(found):,} sentences in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except bedplate.InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
