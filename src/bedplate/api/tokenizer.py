"""`tokenizer`: train a tokenizer on text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bedplate.api.folders import check_writable, make_folder, refuse_existing
from bedplate.data.sources import documents
from bedplate.data.tokenizer import save_tokenizer, train_tokenizer, vocabulary_size

CHARACTERS = 100_000_000  # of text that a tokenizer is trained on: its merges hardly change beyond


def tokenizer(
    data: str | Path | Sequence[str | Path], out: str | Path, *, vocab_size: int = 8192, column: str = "text"
) -> dict[str, Any]:
    """Train a byte-level BPE tokenizer and write `out/tokenizer.json`, which `transformers` reads too.

    Args:
        data: files, folders, globs, archives or hf: ids; the first 100 million characters are used.
        vocab_size: entries, special tokens included.
        column: the column or key that holds the text.

    Returns:
        {"out", "vocab_size"}; fewer entries than asked where the text gives no more merges.
    """
    out = Path(out).expanduser()
    refuse_existing(out, "give another folder")
    check_writable(out)
    trained = train_on_text([str(path) for path in _listed(data)], column, vocab_size)
    make_folder(out)
    save_tokenizer(trained, out, context_length=1_000_000)
    return {"out": str(out), "vocab_size": vocabulary_size(trained)}


def train_on_text(path: list[str], column: str, vocab_size: int) -> Tokenizer:
    """A byte-level BPE trained on the beginning of the text."""
    texts = (piece for document in documents(path, column) for piece in document.pieces)
    return train_tokenizer(_first_characters(texts, CHARACTERS), vocab_size)


def _first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


def _listed(data: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return [data] if isinstance(data, str | Path) else data
