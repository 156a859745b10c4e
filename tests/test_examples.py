"""The examples: what they refuse they say as the commands do."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [("retrieval.py", ["no/such/model", ".", "a query"], "no/such/model")],
)
def test_bad_input_is_a_sentence_and_exit_code_2(name: str, arguments: list[str], told: str) -> None:
    result = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "", result.stderr
    assert result.stderr.startswith("Error: ") and told in result.stderr and result.stderr.count("\n") == 1
