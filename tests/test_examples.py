"""The examples: what they refuse they say as the commands do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("retrieval.py", ["no/such/model", ".", "a query"], "no/such/model"),
        ("single_sentences.py", ["no/such/texts.jsonl"], "no/such/texts.jsonl"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(name: str, arguments: list[str], told: str) -> None:
    result = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "", result.stderr
    assert result.stderr.startswith("Error: ") and told in result.stderr and result.stderr.count("\n") == 1


def test_sentences_are_cut_where_they_end(tmp_path: Path) -> None:
    text = (
        'It was late. "Who is there?" she asked; 3.5 miles off. “Nobody!” He ran on\nThe next line is its own.\nNo.\n'
    )
    (tmp_path / "book.txt").write_text(text, "utf-8")
    out = tmp_path / "sentences.jsonl"
    command = [sys.executable, str(EXAMPLES / "single_sentences.py"), str(tmp_path / "book.txt"), "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    found = {json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()}
    assert found == {
        "It was late.",
        '"Who is there?" she asked; 3.5 miles off.',
        "He ran on",
        "The next line is its own.",
    }
