"""What the commands share: the `--json` switch, and where results and messages go."""

import json
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value on stdout.")]


def print_json(value: Any) -> None:
    """The result of a command with `--json`: one JSON value, the only thing on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def say(message: str) -> None:
    """A message or progress line: to stderr, so that stdout holds results only."""
    print(message, file=sys.stderr)
