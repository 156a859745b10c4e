"""Summarisation: a short text for a long one, by a causal model that learnt to go on behind a cue."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from tokenizers import Tokenizer

from bedplate.data.summaries import Summarized, SummaryEncoder, SummaryForm
from bedplate.errors import InputError
from bedplate.metrics.rouge import lead, need_rouge, rouge
from bedplate.models.beam import generate
from bedplate.models.gpt import GPT

Long = Literal["join", "reduce", "first"]
"""What becomes of a document longer than the model reads: its parts' summaries, a summary of these, or of the first."""
TOKENS = 16384  # of prompts and summaries of all beams that are written at one time


class Summarizer:
    """Writes summaries.

    Args:
        form: how the model was taught, and the defaults of what `summarize` takes.
        stop_ids: tokens that end a summary.
    """

    def __init__(self, module: GPT, tokenizer: Tokenizer, form: SummaryForm, stop_ids: Collection[int]) -> None:
        self._module, self._tokenizer, self._form, self._stop_ids = module, tokenizer, form, stop_ids
        self._encoder = SummaryEncoder(tokenizer, form.cue, next(iter(stop_ids), 0))

    def summarize(self, documents: Sequence[str], *, long: Long = "join", **options: Any) -> list[str]:
        """One summary a document, in order.

        A document that does not fit into the rows that the model was trained on is read in windows. Their summaries are
        joined, one a line; with long="reduce" these are summarised again until they fit into one window, and "first"
        takes the first window alone. `no_repeat_ngram_size` is about the summary: it may repeat its document.

        Args:
            options: those of `models.beam.generate`.

        Raises:
            InputError: an empty document, an option out of its range, or one that leaves no room for documents.
        """
        if long not in get_args(Long):
            raise InputError(f"long={long!r} is not known; choose one of {', '.join(get_args(Long))}")
        for number, document in enumerate(documents, 1):
            if not document.strip():
                raise InputError(f"document {number} is empty; remove it or fill it in")
        options = self._options(options)
        room = self._form.sequence_length - options["max_new_tokens"]
        if room < self._form.sequence_length // 4:
            raise InputError(
                f"max_new_tokens={options['max_new_tokens']} leaves less than a quarter of the "
                f"{self._form.sequence_length} tokens that this model reads to the document; give less"
            )
        windows = [self._encoder.windows(document, room) for document in documents]
        if long == "first":
            windows = [each[:1] for each in windows]
        texts = self._joined(windows, options)
        again = [i for i, each in enumerate(windows) if len(each) > 1 and texts[i]] if long == "reduce" else []
        while again:
            shorter = {i: self._encoder.windows(texts[i], room) for i in again}
            # Summaries as long as their windows would never come to an end.
            again = [i for i in again if len(shorter[i]) < len(windows[i])]
            for i, text in zip(again, self._joined([shorter[i] for i in again], options), strict=True):
                texts[i], windows[i] = text, shorter[i]
            again = [i for i in again if len(windows[i]) > 1 and texts[i]]
        return texts

    def windowed(self, documents: Sequence[str]) -> int:
        """Count the documents that are read in windows."""
        room = self._form.sequence_length - self._form.max_new_tokens
        return sum(len(self._encoder.windows(document, room)) > 1 for document in documents)

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """Those given, and the form's for what is not; a search of one beam takes the likeliest token each time."""
        own = {key: value for key, value in asdict(self._form).items() if key not in ("cue", "sequence_length")}
        options: dict[str, Any] = {"stop_ids": self._stop_ids, "ngrams_of_prompt": False} | own | given
        if options["num_beams"] == 1:
            options.setdefault("temperature", 0.0)
            if "length_penalty" not in given:
                del options["length_penalty"]
        if "min_new_tokens" not in given:
            options["min_new_tokens"] = min(options["min_new_tokens"], options["max_new_tokens"])
        return options

    def _joined(self, windows: Sequence[Sequence[list[int]]], options: dict[str, Any]) -> list[str]:
        """The summaries of all windows of each document, one a line."""
        written = iter(self._write([prompt for each in windows for prompt in each], options))
        return ["\n".join(filter(None, [next(written) for _ in each])) for each in windows]

    def _write(self, prompts: list[list[int]], options: dict[str, Any]) -> list[str]:
        """A summary behind each prompt: prompts of like length beside each other, as many as memory has room for."""
        module, texts = self._module, [""] * len(prompts)
        was_training = module.training
        module.eval()
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while order:
            tokens = max(options["num_beams"], 1) * (len(prompts[order[0]]) + options["max_new_tokens"])
            count = max(1, TOKENS // max(tokens, 1))
            now, order = order[:count], order[count:]
            rows = generate(module, [prompts[i] for i in now], **options)
            for i, text in zip(now, self._tokenizer.decode_batch(rows), strict=True):
                texts[i] = text.strip()
        module.train(was_training)
        return texts


def require_rouge() -> None:
    """Make sure that summaries can be scored.

    Raises:
        InputError: the library is missing.
    """
    try:
        need_rouge()
    except ImportError as error:
        raise InputError(str(error)) from error


def score(rows: Sequence[Summarized], texts: Sequence[str]) -> dict[str, Any]:
    """{"metrics": ROUGE of `texts`, "baselines": {"lead": that of the documents' first sentences}}."""
    require_rouge()
    references = [row.summaries for row in rows]
    return {
        "metrics": rouge(texts, references),
        "baselines": {"lead": rouge([lead(row.document) for row in rows], references)},
    }


def examples(rows: Sequence[Summarized], texts: Sequence[str], count: int = 10) -> list[dict[str, str]]:
    """Of `count` rows, evenly spread: {"document", "reference", "text"}."""
    chosen = range(0, len(rows), max(1, len(rows) // count))[:count]
    return [{"document": rows[i].document, "reference": rows[i].summaries[0], "text": texts[i]} for i in chosen]
