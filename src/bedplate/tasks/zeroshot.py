"""Classification without training: labels that a text model has only read the names of, and a few examples at most."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.tokenizer import literal
from bedplate.errors import InputError
from bedplate.models.gpt import GPT
from bedplate.models.scoring import Choice, log_likelihoods

Method = Literal["prompt", "embedding"]
Labels = str | Sequence[str] | Mapping[str, str]
Embed = Callable[[Sequence[str]], Tensor]
Example = tuple[str, str]  # text, label

TEMPLATE = "{text}\nTopic: {label}"
CONTENT_FREE = ("N/A", "", "[MASK]")
BETWEEN = "\n\n"  # examples, and the text that is asked about
EXAMPLES_SHARE = 0.6  # of the context, at most; the rest is the text's
LEAST = 8  # tokens of an example's text, below which it says nothing
LONGEST_TOKEN = 128  # characters; what a longer text has behind this many times the tokens asked for is not read
AT_ONCE = 256  # texts whose prompts are held as tokens
TEMPERATURE = 0.1  # of similarities, which lie between -1 and 1


def read_labels(labels: Labels) -> dict[str, str]:
    """{name: what the model reads for it} of labels as people give them.

    A string has them separated by commas, or by semicolons where it holds one; `name=words` gives a label words of its
    own: "sports, politics", "positive=great; negative=terrible, a waste of time".

    Raises:
        InputError: Fewer than two labels, an empty one, one that is no string, or two of one name or with the same
            words.
    """
    if not isinstance(labels, str | Iterable):
        raise InputError(f"labels: must be a string, a list or {{name: words}}, not {type(labels).__name__}")
    if isinstance(labels, str):
        labels = labels.strip().strip(";" if ";" in labels else ",").split(";" if ";" in labels else ",")
    if not isinstance(labels, Mapping):
        pairs = []
        for number, part in enumerate(labels, 1):
            if not isinstance(part, str):
                raise InputError(f"label {number}: must be a string, not {type(part).__name__}")
            pairs.append(part.partition("="))
        named = [(name.strip(), (words if equals else name).strip()) for name, equals, words in pairs]
    else:
        for name, words in labels.items():
            if not isinstance(words, str):
                raise InputError(f"words of label {name!r}: must be a string, not {type(words).__name__}")
        named = [(str(name).strip(), words.strip()) for name, words in labels.items()]
    if not any(name or words for name, words in named):
        raise InputError("no labels are given; say what to choose between, as in sports,politics")
    for number, (name, words) in enumerate(named, 1):
        if not name or not words:
            raise InputError(f"label {number} of {len(named)} is empty; write labels as sports,politics or name=words")
    for told, values, own in (
        ("label {!r} is", [name for name, _ in named], "a name"),
        ("words {!r} are", [words for _, words in named], "words"),
    ):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise InputError(f"labels: the {told.format(twice[0])} there twice; give each label {own} of its own")
    if len(named) < 2:
        raise InputError(f"labels: only {named[0][0]!r} is given; a choice needs two or more, as in sports,politics")
    return dict(named)


def check_distinct(names: Iterable[str], rows: Iterable[Sequence[int]]) -> None:
    """Refuse labels that a tokenizer makes the same, as one without capitals does "cat" and "Cat".

    Args:
        names: of the labels.
        rows: the token ids of each label's words.

    Raises:
        InputError: Two rows are equal.
    """
    first: dict[tuple[int, ...], str] = {}
    for name, ids in zip(names, rows, strict=True):
        if (other := first.setdefault(tuple(ids), name)) != name:
            raise InputError(
                f"labels: {other!r} and {name!r} are the same tokens to this model; give each label words of its own"
            )


def check_label(label: str, names: Sequence[str], where: str) -> str:
    """`label`, where it is one of `names`.

    Raises:
        InputError: It is not; the error names the nearest.
    """
    if label in names:
        return label
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(label.casefold(), folded, n=1, cutoff=0.6)
    hint = f"; did you mean {folded[near[0]]!r}?" if near else "; mend the row, or name the label"
    raise InputError(f"{where}: label {label[:40]!r} is none of {', '.join(names)}{hint}")


def checked_examples(examples: Sequence[Example | Mapping[str, str]], names: Sequence[str]) -> list[Example]:
    """(text, label) pairs of pairs or of {"text", "label"}.

    Raises:
        InputError: One that is neither, an empty text, or a label that is not among `names`.
    """
    pairs = []
    for number, example in enumerate(examples, 1):
        pair: tuple[Any, ...] = ()
        if isinstance(example, Mapping):
            pair = example.get("text"), example.get("label")
        elif isinstance(example, list | tuple):
            pair = tuple(example)
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise InputError(f'example {number}: must be a pair of text and label, or {{"text": .., "label": ..}}')
        text, label = map(str, pair)
        if not text.strip():
            raise InputError(f"example {number}: the text is empty; remove it or fill it in")
        pairs.append((text, check_label(label, names, f"example {number}")))
    return pairs


def choose_examples(
    texts: Sequence[str], labels: Sequence[str], names: Sequence[str], shots: int, seed: int
) -> list[Example]:
    """`shots` examples of each label, drawn and shuffled by the seed; those of fewer shots are among those of more.

    Raises:
        InputError: A label of which there are fewer.
    """
    if shots < 1:
        raise InputError(f"shots={shots}: at least 1 example of each label is needed")
    generator = np.random.default_rng(seed)
    rounds: list[list[Example]] = [[] for _ in range(shots)]
    for name in names:
        rows = [i for i, label in enumerate(labels) if label == name]
        if len(rows) < shots:
            raise InputError(
                f"shots={shots}: the examples have {len(rows)} of label {name!r}; give more, or fewer shots"
            )
        for part, i in zip(rounds, generator.permutation(rows)[:shots].tolist(), strict=True):
            part.append((texts[i], name))
    return [part[i] for part in rounds for i in generator.permutation(len(part))]


@dataclass(frozen=True)
class Template:
    """How a text and a label are written together: each of {text} and {label} once.

    What comes first is the beginning, and what is scored is the other one with all that follows. With the text first
    that is P(label | text); with the label first it is P(text | label), the noisy channel (Min et al. 2022, arXiv
    2108.04106).
    """

    text: str

    def __post_init__(self) -> None:
        for key in ("{text}", "{label}"):
            if (count := self.text.count(key)) != 1:
                told = "misses" if count == 0 else f"has {count} times"
                raise InputError(f"template {self.text!r} {told} {key}; write each of {{text}} and {{label}} once")

    @property
    def label_first(self) -> bool:
        return self.text.index("{label}") < self.text.index("{text}")

    def write(self, text: str, label: str) -> tuple[str, int]:
        """(the text and label in their places, the character from which on it is scored)."""
        parts = re.split(r"(\{text\}|\{label\})", self.text)  # once: a text may itself spell out {label}
        values = {"{text}": text, "{label}": label}
        written = [values.get(part, part) for part in parts]
        return "".join(written), len("".join(written[:3]))


@dataclass
class Prompt:
    """Labels scored by how likely they are in a template.

    With the text first, a label's score is the log-likelihood of its tokens. Short and frequent labels are likely
    whatever the text says, so with `calibrate` the score is taken relative to that behind texts without content
    (contextual calibration, Zhao et al. 2021, arXiv 2102.09690: p / p_content_free, renormalised; with the empty text
    alone it is the domain-conditional PMI of Holtzman et al. 2021, arXiv 2104.08315). Without it, the score is the mean
    over a label's tokens. With the label first, the score is the log-likelihood of the text and needs neither.

    A text that does not fit into the context is cut at its end. Examples get `EXAMPLES_SHARE` of the context at most,
    each the same share of it, and are cut like texts.

    Attributes:
        start: token that begins a document, if the model has one.
        labels: {name: words}, see `read_labels`.
        cut: texts and examples that were cut so far.
    """

    module: GPT
    tokenizer: Tokenizer
    labels: Mapping[str, str]
    start: int | None = None
    template: Template = field(default_factory=lambda: Template(TEMPLATE))
    examples: Sequence[Example] = ()
    calibrate: bool = True
    cut: int = 0

    def __post_init__(self) -> None:
        self._context = self.module.config.max_position_embeddings
        self._before = ""  # what stands before the text's own template
        self._longest = max(self.labels.values(), key=lambda words: self._size("", words))
        if self.examples:
            self._before = self._written_examples()
        taken = self._size("", self._longest)
        if self._context - taken < LEAST:
            raise InputError(
                f"template and labels take {taken} tokens, which leaves no room for a text in the model's context of "
                f"{self._context}; shorten them"
            )

    def scores(self, texts: Sequence[str]) -> Tensor:
        """Logits `(T, C)` over the labels, whose softmax is what the model believes; each text by itself."""
        parts = range(0, len(texts), AT_ONCE)
        found = torch.cat([self._log_likelihoods([self._fitting(t) for t in texts[i : i + AT_ONCE]]) for i in parts])
        if self.template.label_first or not self.calibrate:
            return found
        return found - self._content_free()

    def _content_free(self) -> Tensor:
        """log of the mean of the labels' probabilities `(C,)` over the texts without content."""
        return self._log_likelihoods(CONTENT_FREE).softmax(1).mean(0).log()

    def _log_likelihoods(self, texts: Sequence[str]) -> Tensor:
        words = list(self.labels.values())
        written = [self.template.write(text, label) for text in texts for label in words]
        encoded = self._encode([self._before + whole for whole, _ in written])
        choices: list[Choice] = []
        for first in range(0, len(encoded), len(words)):
            rows = encoded[first : first + len(words)]
            starts = [at + len(self._before) for _, at in written[first : first + len(words)]]
            choices += self._choices(rows, starts)
        found = log_likelihoods(self.module, choices)
        table = torch.tensor([value for values in found for value in values], dtype=torch.float64)
        if not (self.calibrate or self.template.label_first):
            table /= torch.tensor([float(len(c)) for choice in choices for c in choice.continuations])
        return table.view(len(texts), len(words))

    def _choices(self, rows: Sequence[tuple[list[int], list[int]]], starts: Sequence[int]) -> list[Choice]:
        """One text with each label. Tokens that cross into what is scored, a leading space among them, belong to it."""
        seams = [
            next((i for i, end in enumerate(ends) if end > at), len(ends) - 1)
            for (_, ends), at in zip(rows, starts, strict=True)
        ]
        begin = [] if self.start is None else [self.start]
        if not begin and min(seams) < 1:
            raise InputError(
                f"template {self.template.text!r}: nothing stands before what is scored, and the model has no token "
                "that begins a text; write some words there"
            )
        if self.template.label_first:
            return [Choice(begin + ids[:seam], [ids[seam:]]) for (ids, _), seam in zip(rows, seams, strict=True)]
        # A label may draw more of the template into its first token than another: all are scored behind one beginning.
        seam = min(seams)
        while any(ids[:seam] != rows[0][0][:seam] for ids, _ in rows):
            seam -= 1
        return [Choice(begin + rows[0][0][:seam], [ids[seam:] for ids, _ in rows])]

    def _written_examples(self) -> str:
        """The examples, each cut to the same share of the tokens that they may take."""
        share = int(self._context * EXAMPLES_SHARE) // len(self.examples)
        written = []
        for text, label in self.examples:
            room = share - self._size("", self.labels[label])
            if room < LEAST:
                most = int(self._context * EXAMPLES_SHARE) // (share - room + LEAST)
                raise InputError(
                    f"{len(self.examples)} examples leave {max(room, 0)} tokens for the text of each in the model's "
                    f"context of {self._context}; give at most {most}, or use method='embedding'"
                )
            kept = self._beginning(text, room)
            self.cut += len(kept) < len(text)
            written.append(self.template.write(kept, self.labels[label])[0])
        return BETWEEN.join([*written, ""])

    def _fitting(self, text: str) -> str:
        """The text, its end cut off where it does not fit into the context with the longest label."""
        whole, room = text, self._context - self._size("", self._longest)
        text = self._beginning(text, room)
        while (excess := self._size(text, self._longest) - self._context) > 0:  # a seam may take a token more
            room -= excess
            text = self._beginning(text, room)
        self.cut += len(text) < len(whole)
        return text

    def _beginning(self, text: str, tokens: int) -> str:
        """The text as far as its first `tokens` tokens reach."""
        ends = self._encode([text[: tokens * LONGEST_TOKEN]])[0][1]
        return text[: ends[tokens - 1]] if len(ends) > tokens else text[: tokens * LONGEST_TOKEN]

    def _size(self, text: str, words: str) -> int:
        """Tokens that the text takes with this label, examples and the token that begins a document included."""
        return len(self._encode([self._before + self.template.write(text, words)[0]])[0][0]) + (self.start is not None)

    def _encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """(token ids, the character after each token) of each text; special tokens that a text spells out stay text."""
        encoded = literal(self.tokenizer).encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in encoded]


def similarities(
    embed: Embed, texts: Sequence[str], labels: Mapping[str, str], examples: Sequence[Example] = ()
) -> Tensor:
    """Logits `(T, C)`: the cosine of each text's vector and each label's, over `TEMPERATURE`.

    `embed` gives vectors of length 1. A label's vector is that of its words; with examples, the mean of
    that and theirs.
    """
    names = list(labels)
    of_label = embed(list(labels.values()))
    if examples:
        index = torch.tensor([names.index(label) for _, label in examples])
        of_label = of_label.index_add(0, index, embed([text for text, _ in examples]))
    return embed(texts) @ F.normalize(of_label, dim=1).T / TEMPERATURE
