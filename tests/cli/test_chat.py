"""`bedplate generate --chat`: piped, typed, or with prompts as arguments."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bedplate.data.template import CHATML
from bedplate.data.tokenizer import SPECIAL_TOKENS
from bedplate.hub import chat as hub_chat


@pytest.fixture(scope="module")
def chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template, which it was not trained on, and a context of 128."""
    model = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tiny_model, model)
    for name, values in (
        ("tokenizer_config.json", {"chat_template": CHATML}),
        ("config.json", {"max_position_embeddings": 128}),
    ):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(config | values))
    return model


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is pressed in every answer, after "ab"."""

    def generate(module: Any, rows: list[list[int]], *, on_token: Any, **options: Any) -> None:
        for token in "ab":
            on_token(0, len(SPECIAL_TOKENS) + ord(token) - ord("!"))  # the bytes follow the special tokens, from "!" on
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_chat, "generate", generate)


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_lines_of_a_pipe_are_turns(run_cli: Any, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--seed", 1, "--max-new-tokens", 5)
    pipe(monkeypatch, "The cat\n\nHer\n")
    messages = json.loads(run_cli("generate", chat_model, "--chat", "--system", "Be.", *options, "--json").out)
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    assert [message["content"] for message in messages[:2]] == ["Be.", "The cat"]
    pipe(monkeypatch, "The cat\n\nHer\n")
    result = run_cli("generate", chat_model, "--chat", "--system", "Be.", *options)
    assert (result.code, result.err) == (0, "")
    assert result.out == messages[2]["content"] + "\n" + messages[4]["content"] + "\n"  # nothing but answers
    result = run_cli("generate", chat_model, "The cat", "Her", "--chat", "--system", "Be.", *options, "--json")
    assert json.loads(result.out) == messages


def test_commands(run_cli: Any, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "one two\n/reset\nthe dog\n/exit\nnever said\n")
    messages = json.loads(run_cli("generate", chat_model, "--chat", "--json").out)
    assert messages[0]["content"] == "the dog" and len(messages) == 2


@pytest.mark.usefixtures("interrupted")
def test_at_a_terminal(run_cli: Any, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "a long line of words"
    lines = iter([line, KeyboardInterrupt, "x" * 500, line, "/reset", line, line, line, line, EOFError])

    def typed(prompt: str) -> str:
        print(prompt, end="")
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    result = run_cli("generate", chat_model, "--chat")
    assert (result.code, result.out) == (0, "ab\n" * 6)  # answers alone: stdout is no terminal here
    assert result.err.count("> ") == 10 and result.err.count("Error: this message makes a prompt of") == 1
    assert result.err.count("no longer sees the oldest turns") == 1


@pytest.mark.usefixtures("interrupted")
def test_ctrl_c_in_a_pipe_ends_the_program(run_cli: Any, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, "a long line of words\nmore\n")
    assert run_cli("generate", chat_model, "--chat").code == 130


def test_what_cannot_be_said(run_cli: Any, tiny_model: Path, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, part in (
        ([tiny_model, "--chat"], "no chat template: fine-tune it"),
        ([tiny_model], "no PROMPT"),
        ([tiny_model, "The", "--system", "x"], "add --chat"),
        ([chat_model, "--chat", "x" * 500], "context holds 128"),
    ):
        result = run_cli("generate", *arguments)
        assert result.code == 2 and part in result.err and result.out == ""
