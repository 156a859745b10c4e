"""Documents and their summaries: read from files with rows, and turned into tokens of which the summaries are targets.

A model learns to write the summary behind its document and a cue, `CUE`: plain text, so that the vocabulary stays as it
is, and one that texts of the web have before a summary (the prompt of GPT-2's paper, section 3.6).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from bedplate.data.chat import Example
from bedplate.data.formats import missing_column
from bedplate.data.loader import IGNORE
from bedplate.data.sources import Paths, checked_text, rows, shown
from bedplate.data.tokenizer import literal
from bedplate.errors import InputError

CUE = "\n\nTL;DR:"
KEY = "summarize"
"""Where `tokenizer_config.json` keeps a `SummaryForm`; `transformers` reads past it."""

# Names under which published data sets keep documents and summaries, the clearest first.
DOCUMENT_NAMES = ("document", "text", "article", "source", "body", "content", "dialogue", "description")
SUMMARY_NAMES = ("summary", "highlights", "target", "tldr", "summaries", "abstract", "headline", "title")
NAMED_ROWS = 100
LONGEST = 128  # characters of a token; few have more
"""First rows whose columns are taken for all (rows of JSON Lines need not hold the same)."""
BREAKS = re.compile(r"(?<=[.!?。！？])[\"')\]]*\s+|\n\s*"), re.compile(r"\s+")
"""Where a long document is cut: behind a sentence or a line, else between words."""


class Summarized(NamedTuple):
    """A document, its summaries (one or more) and where they come from ("file:line")."""

    document: str
    summaries: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class SummaryData:
    """Rows of documents with their summaries, and the columns that these are from."""

    rows: list[Summarized]
    document: str
    summary: str


@dataclass(frozen=True)
class SummaryForm:
    """How a model was taught to summarise, and how it writes where nothing else is said."""

    cue: str
    sequence_length: int  # tokens of document, cue and summary that it was trained on
    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 4
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3

    @staticmethod
    def of(tokenizer_config: Mapping[str, Any]) -> SummaryForm | None:
        """That of a model directory; None where the model is no summariser.

        Raises:
            InputError: its values are not those of a form.
        """
        values = tokenizer_config.get(KEY)
        if values is None:
            return None
        numbers = {field.name for field in fields(SummaryForm)} - {"cue"}
        if not (
            isinstance(values, Mapping)
            and isinstance(values.get("cue"), str)
            and values.keys() <= numbers | {"cue"}
            and all(isinstance(values.get(name, 0), int | float) for name in numbers)
            and {"sequence_length", "max_new_tokens"} <= values.keys()
        ):
            raise InputError(f"tokenizer_config.json: '{KEY}' holds {values!r}, no form of summaries; save it again")
        return SummaryForm(**values)

    def to_config(self) -> dict[str, Any]:
        """{`KEY`: values}, as `of` reads them."""
        return {KEY: asdict(self)}


def read_summaries(path: Paths, document: str | None = None, summary: str | None = None) -> SummaryData:
    """Read the documents with summaries that `path` names, in the order of `sources.rows`.

    Args:
        path: Files, folders, globs or `hf:` ids with rows: jsonl, parquet, csv or tsv.
        document: Column of the documents; guessed by name.
        summary: Column of the summaries, each a string or a list of strings; guessed by name.

    Raises:
        InputError: No row, a column that is not there or cannot be guessed, an empty document or summary, or a value
            that is no text.
    """
    if document is None or summary is None:
        names = list(dict.fromkeys(name for _, row in islice(rows(path), NAMED_ROWS) for name in row))
        if not names:
            raise InputError(f"{shown(path)}: no rows; give documents with their summaries, one a row")
        document = document or _guessed(path, "document", DOCUMENT_NAMES, names, summary)
        summary = summary or _guessed(path, "summary", SUMMARY_NAMES, names, document)
    if document == summary:
        raise InputError(f"'{document}' cannot be both document and summary; name the column of the other")
    found = [_checked(source, row, document, summary) for source, row in rows(path)]
    if not found:
        raise InputError(f"{shown(path)}: no rows; give documents with their summaries, one a row")
    return SummaryData(found, document, summary)


class SummaryEncoder:
    """Documents and summaries as token ids, for training and for generation.

    A document with its cue is tokenised as one text, with what the tokenizer puts before a text, so that
    `tokenizer(document + cue)` of `transformers` gives the same prompt. A document that spells a special token holds
    plain text.

    Args:
        cue: Text between document and summary.
        end: Id of the token that ends a summary.
    """

    def __init__(self, tokenizer: Tokenizer, cue: str, end: int) -> None:
        self._cue, self._end = cue, end
        self._tokenizer = literal(tokenizer)

    def prompt(self, document: str, room: int) -> list[int]:
        """The document and the cue in at most `room` tokens; of a longer document the end is left out.

        Raises:
            InputError: the room does not hold the cue and a token of the document.
        """
        return self._fit(document.strip(), room)[0]

    def example(self, document: str, summary: str, sequence_length: int) -> tuple[Example, bool]:
        """Document, cue, summary and end in at most `sequence_length` tokens, and whether the document was cut.

        Raises:
            InputError: The summary leaves no room for a document.
        """
        written = [*self._tokenizer.encode(" " + summary.strip(), add_special_tokens=False).ids, self._end]
        text = document.strip()
        try:
            prompt, reached = self._fit(text, sequence_length + 1 - len(written))
        except InputError:
            raise InputError(
                f"the summary has {len(written):,} tokens and a row {sequence_length:,}, which leaves no room for the "
                "document; choose a larger train.sequence_length, or leave the row out"
            ) from None
        tokens = np.array([*prompt, *written], np.int32)
        targets = np.where(np.arange(1, len(tokens)) < len(prompt), np.int32(IGNORE), tokens[1:])
        return (tokens[:-1], targets), reached < len(text)

    def windows(self, document: str, room: int) -> list[list[int]]:
        """Prompts of at most `room` tokens that together hold the whole document: about equal parts of whole sentences.

        Raises:
            InputError: see `prompt`.
        """
        text, found = document.strip(), list[list[int]]()
        tokens = len(self._encode(text)) / max(len(text), 1)  # a character
        while True:
            near = text[: room * LONGEST]  # holds more than a window, and is not the rest of a whole book
            ids, reached = self._fit(near, room)
            if reached == len(text):
                return [*found, ids]
            parts = max(2, math.ceil(len(text) * tokens / room))
            cut = _cut(text, reached, len(text) // parts)
            found.append(self._fit(text[:cut].rstrip(), room)[0])
            text = text[cut:].lstrip()

    def _encode(self, text: str) -> Encoding:
        return self._tokenizer.encode(text + self._cue)

    def _fit(self, text: str, room: int) -> tuple[list[int], int]:
        """(ids of the text, cut where it must be, and the cue; how many characters of the text they hold)."""
        encoding = self._encode(text)
        ids, reached = encoding.ids, len(text)
        if len(ids) <= room:
            return ids, reached
        ends = [end for start, end in encoding.offsets if start < len(text)]
        kept = len(ends) + room - len(ids)
        while kept > 0 and ends[kept - 1]:
            reached = min(ends[kept - 1], len(text))
            ids = self._encode(text[:reached].rstrip()).ids
            if len(ids) <= room:
                return ids, reached
            kept -= len(ids) - room
        raise InputError(f"{room} tokens are no room for a document and what comes behind it; give more")


def encode_summaries(
    encoder: SummaryEncoder, data: Sequence[Summarized], sequence_length: int
) -> tuple[list[Example], int]:
    """(an example of each summary of each document; how many documents were cut).

    Raises:
        InputError: See `SummaryEncoder.example`; with the place of the row.
    """
    examples, cut = [], 0
    for row in data:
        try:
            encoded = [encoder.example(row.document, summary, sequence_length) for summary in row.summaries]
        except InputError as error:
            raise InputError(f"{row.source}: {error}") from error
        examples += [example for example, _ in encoded]
        cut += any(was_cut for _, was_cut in encoded)
    return examples, cut


def _cut(text: str, limit: int, goal: int) -> int:
    """The place of the break next to `goal` among the first `limit` characters, else `limit`."""
    for pattern in BREAKS:
        if places := [found.end() for found in pattern.finditer(text, 0, limit) if found.start()]:
            return min(places, key=lambda place: abs(place - goal))
    return limit


def _guessed(path: Paths, key: str, known: Sequence[str], names: Sequence[str], taken: str | None) -> str:
    spelt = {name.strip().lower(): name for name in reversed(names) if name != taken}
    found = next((spelt[name] for name in known if name in spelt), None)
    if found is None:
        raise InputError(
            f"{shown(path)}: it is not clear which column holds the {key}: present are {', '.join(map(repr, names))}; "
            f"name the column: data.{key}=... in a recipe, --{'column' if key == 'document' else key} on the command "
            "line"
        )
    return found


def _checked(source: str, row: Mapping[str, Any], document: str, summary: str) -> Summarized:
    for column in (document, summary):
        if column not in row:
            raise missing_column(source, column, row)
    text = checked_text(source, document, row[document]).strip()
    if not text:
        raise InputError(f"{source}: the document in '{document}' is empty; fill it in or leave the row out")
    given = row[summary] if isinstance(row[summary], list) else [row[summary]]
    summaries = tuple(checked_text(source, summary, value).strip() for value in given)
    if not summaries or not all(summaries):
        raise InputError(f"{source}: the summary in '{summary}' is empty; fill it in or leave the row out")
    return Summarized(text, summaries, source)
