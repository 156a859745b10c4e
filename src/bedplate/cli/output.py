"""What the commands share: the `--json` switch, and where results and messages go."""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON value on stdout.")]


def is_main() -> bool:
    """Whether this process speaks for its run: the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def print_json(value: Any) -> None:
    """The result of a command with `--json`: one JSON value, the only thing on stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_left_out(left_out: Mapping[str, Any], pictures: str) -> None:
    """What was not scored, by reason, of what `evaluate` calls "dropped" and "broken"."""
    for what, count in left_out.get("dropped", {}).items():
        print(f"left out: {count:,} {what}")
    if broken := left_out.get("broken"):
        print(f"left out, cannot be decoded: {len(broken):,} of the {pictures}, the first: {broken[0]}")


def say(message: str) -> None:
    """A message or progress line: to stderr, so that stdout holds results only."""
    print(message, file=sys.stderr)


def say_once(message: str) -> None:
    """A message that every rank of a run is likely to have: torchrun stops the others before they repeat it."""
    if not is_main():
        time.sleep(30)  # a busy machine takes many seconds to end the first one
        message = f"rank {os.environ['RANK']}: {message}"
    say(message)
