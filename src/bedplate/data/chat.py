"""Conversations: read from files, and turned into tokens of which the responses are the targets.

A row of a file is a conversation in one of three forms: {"messages": [{"role", "content"}, ...]}, ShareGPT's
{"conversations": [{"from", "value"}, ...]}, or a pair of columns, see `PAIRS`, that hold a prompt and its response.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bedplate.data.loader import IGNORE
from bedplate.data.sources import Paths, checked_text, rows, shown
from bedplate.data.template import ChatTemplate, Messages
from bedplate.data.tokenizer import literal
from bedplate.errors import InputError

Example = tuple[np.ndarray, np.ndarray]
"""ids and targets (N,) int32: `targets[t]` is the token after `ids[t]` where that is of a response, else -100."""

LISTS = ("messages", "conversations")
PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
)
INPUTS = ("input", "context")
"""Columns beside `instruction` whose text, if any, follows it in the prompt (Alpaca's and Dolly's)."""
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

PRIVATE = range(0xF0000, 0x10FFFE)
"""Unicode's private planes: characters that mean nothing, and stand for what a text must not spell."""


@dataclass(frozen=True)
class Chat:
    """A conversation that has a response, and where it comes from ("file:line")."""

    messages: list[dict[str, str]]
    source: str


@dataclass(frozen=True)
class Examples:
    """Conversations as tokens; `truncated` counts those that were longer than the context."""

    examples: list[Example]
    truncated: int


def read_chats(path: Paths, prompt: str | None = None, response: str | None = None) -> list[Chat]:
    """Read conversations from the rows of `path`, all in one form.

    Args:
        path: Files, folders, globs or `hf:` ids with rows: jsonl, parquet, csv or tsv.
        prompt: Column of the prompt, where its name is not among `PAIRS`; needs `response`.
        response: Column of the response.

    Raises:
        InputError: No row, rows of two forms or of none, an unknown role, a text that is not a string, or a
            conversation without a response or with an empty one.
    """
    if (prompt is None) != (response is None):
        raise InputError("the column of the prompt and that of the response go together; name both, or neither")
    chats: list[Chat] = []
    first: tuple[str, ...] = ()
    for source, row in rows(path):
        form = _form(source, row) if prompt is None or response is None else (prompt, response)
        first = first or form
        if form != first:
            raise InputError(
                f"{source}: holds {_named(form)}, the rows before {_named(first)}; write all rows in one form"
            )
        chats.append(Chat(_messages(source, row, form), source))
    if not chats:
        raise InputError(f"{shown(path)}: no rows; give conversations, one a row")
    return chats


def checked_message(where: str, value: Any) -> dict[str, str]:
    """{"role", "content"}, or ShareGPT's {"from", "value"}, in the first form.

    Raises:
        InputError: It is neither, has an unknown role, or a text that is not a string; with the place.
    """
    names = ("from", "value") if isinstance(value, dict) and "from" in value else ("role", "content")
    if not isinstance(value, dict) or not all(name in value for name in names):
        raise InputError(f"{where}: not a message; write it as {{'role': ..., 'content': ...}}")
    role, content = (value[name] for name in names)
    if not isinstance(role, str) or role not in ROLES:
        raise InputError(f"{where}: unknown role {role!r}; known are {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": checked_text(where, names[1], content)}


def encode_chats(tokenizer: Tokenizer, template: ChatTemplate, chats: Sequence[Chat], sequence_length: int) -> Examples:
    """Tokenise conversations into examples of at most `sequence_length` tokens.

    Of a longer conversation the beginning is left out, as much as is needed; where its last response alone is too
    long, that response's end.

    Raises:
        InputError: See `ChatEncoder`; with the place of the conversation.
    """
    encoder = ChatEncoder(tokenizer, template)
    examples, truncated = [], 0
    for chat in chats:
        try:
            ids, targets = encoder.example(chat.messages)
        except InputError as error:
            raise InputError(f"{chat.source}: {error}") from error
        if len(ids) > sequence_length:
            truncated += 1
            outside = np.flatnonzero(targets == IGNORE)
            response = outside[-1] + 1 if len(outside) else 0  # where the last response begins among the targets
            start = min(len(ids) - sequence_length, response)
            ids, targets = (row[start : start + sequence_length] for row in (ids, targets))
        examples.append((ids, targets))
    return Examples(examples, truncated)


class ChatEncoder:
    """Conversations as token ids, for training and for generation.

    Only the template writes special tokens: a message that spells one, such as "<|im_end|>", holds plain text, so that
    no message can forge a turn. The spellings stand for private characters while the template runs.

    Attributes:
        stop_ids: Special tokens that end a response.

    Raises:
        InputError: The template ends a response with no special token, so a model could not learn when to stop.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: index for index, token in added.items() if token.special}
        self._spelling = _any_of(self._special)
        endings = self._endings()
        self._ending = _any_of(endings)
        self.stop_ids = tuple(self._special[ending] for ending in endings)

    def prompt(self, messages: Messages) -> list[int]:
        """The conversation up to where the next answer begins."""
        marked, spelled = self._mark(messages)
        return self._tokenize(self._template.render(marked, add_generation_prompt=True), spelled)[0]

    def example(self, messages: Messages) -> Example:
        """The conversation up to the end of its last response.

        A response reaches from where the template prompts for it to the special token that ends the turn. A token that
        belongs to the prompt and to the response (white space, say) is no target: it cannot come after the prompt.

        Raises:
            InputError: The template refuses the conversation, or its text does not grow from prompt to prompt, so that
                it cannot be told where the responses lie.
        """
        marked, spelled = self._mark(messages)
        text = self._template.render(marked)
        begins = [self._response(text, marked, i) for i, turn in enumerate(marked) if turn["role"] == "assistant"]
        if not begins:
            raise InputError("the conversation has no response; give at least one message of the assistant")
        ids, places = self._tokenize(text, spelled)
        place, wanted = np.array(places), np.zeros(len(ids), bool)
        for begin, limit in zip(begins, [*begins[1:], len(text)], strict=True):
            ending = self._ending.search(text, begin, limit)
            if ending is None:
                raise InputError("the chat template does not end every response with the same special token")
            wanted |= (place >= begin) & (place < ending.end())
        last = int(np.flatnonzero(wanted)[-1])
        tokens = np.array(ids[: last + 1], np.int32)
        return tokens[:-1], np.where(wanted[1 : last + 1], tokens[1:], np.int32(IGNORE))

    def _response(self, text: str, marked: Messages, turn: int) -> int:
        """Where the response of this turn begins in the text: where the prompt for it ends."""
        prompt = self._template.render(marked[:turn], add_generation_prompt=True)
        if not text.startswith(prompt):
            raise InputError(
                f"the chat template writes the messages before message {turn + 1} in another way when that is to be "
                "answered than when it is there, so the responses cannot be told apart; use another template"
            )
        return len(prompt)

    def _endings(self) -> list[str]:
        """Special tokens that end a response at the end of a conversation, and before another turn."""
        probe, found = chr(PRIVATE[0]), []
        turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", probe), ("user", "a"))]
        for stop in (2, 3):
            ending = self._spelling.search(self._template.render(turns[:stop]).partition(probe)[2])
            found += [ending.group()] if ending else []
        if not found:
            raise InputError(
                "the chat template ends a response with no special token of the tokenizer, so a model could not learn "
                "when to stop; let it write eos_token there"
            )
        return list(dict.fromkeys(found))

    def _mark(self, messages: Messages) -> tuple[list[dict[str, str]], dict[str, str]]:
        """Messages with a private character for each spelling of a special token, and what these stand for."""
        content = "".join(message["content"] for message in messages)
        used = set(content) | set(self._template.source)
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        marks = dict(zip(sorted(set(self._spelling.findall(content))), free, strict=False))
        marked = [
            dict(message) | {"content": self._spelling.sub(lambda found: marks[found.group()], message["content"])}
            for message in messages
        ]
        return marked, {mark: spelling for spelling, mark in marks.items()}

    def _tokenize(self, text: str, spelled: Mapping[str, str]) -> tuple[list[int], list[int]]:
        """Ids, and the place of each in the text, where a private character is as long as any."""
        ids: list[int] = []
        places: list[int] = []
        at = 0
        for piece in re.split(f"([{''.join(spelled)}])", text) if spelled else [text]:
            if piece in spelled:
                plain = literal(self._tokenizer).encode(spelled[piece], add_special_tokens=False).ids
                if self._special[spelled[piece]] in plain:
                    raise InputError(
                        f"a message spells {spelled[piece]!r}, which the tokenizer cannot write as plain text; "
                        "change the message"
                    )
                ids += plain
                places += [at] * len(plain)
            elif piece:
                encoding = self._tokenizer.encode(piece, add_special_tokens=False)
                ids += encoding.ids
                places += [at + start for start, _ in encoding.offsets]
            at += len(piece)
        return ids, places


def _any_of(spellings: Sequence[str] | Mapping[str, int]) -> re.Pattern[str]:
    """A pattern of these, the longest first; of none, one that matches nothing."""
    return re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))) or "(?!)")


def _form(source: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns of a row that hold the conversation."""
    found = next(((name,) for name in LISTS if name in row), None) or next(
        (pair for pair in PAIRS if pair[0] in row and pair[1] in row), None
    )
    if found is None:
        pairs = ", ".join(f"{prompt} and {response}" for prompt, response in PAIRS)
        raise InputError(
            f"{source}: no conversation in the columns {', '.join(map(repr, row))}; known are {', '.join(LISTS)}, or "
            f"{pairs}: name the columns of the prompt and the response, or rename them"
        )
    return found


def _named(form: tuple[str, ...]) -> str:
    return " and ".join(f"'{column}'" for column in form)


def _messages(source: str, row: Mapping[str, Any], form: tuple[str, ...]) -> list[dict[str, str]]:
    if len(form) == 1:
        values = row[form[0]]
        if not isinstance(values, list):
            kind = type(values).__name__
            raise InputError(f"{source}: '{form[0]}' holds {kind}, not a list of messages; give .jsonl or .parquet")
        messages = [checked_message(f"{source}, message {number}", value) for number, value in enumerate(values, 1)]
    else:
        prompt, response = form
        for column in form:
            if column not in row:
                raise InputError(f"{source}: no column '{column}'; present are {', '.join(map(repr, row))}")
        texts = [checked_text(source, prompt, row[prompt])]
        if prompt == "instruction":
            texts += [checked_text(source, name, row[name]) for name in INPUTS if row.get(name)]
        messages = [
            {"role": "user", "content": "\n\n".join(texts)},
            {"role": "assistant", "content": checked_text(source, response, row[response])},
        ]
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise InputError(f"{source}: no message of the assistant, and nothing else is learnt from; leave the row out")
    if not all(answer.strip() for answer in answers):
        raise InputError(f"{source}: an empty response; leave the row out, or write what is to be answered")
    return messages
