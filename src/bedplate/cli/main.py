"""The command `bedplate`: its verbs in the order of `--help`, and what each way of failing prints and returns.

The modules of the verbs import `bedplate.api` inside their functions only, so that `--help` answers at once.
Exit codes: 0 done, 1 a defect of ours, 2 bad input or usage, 3 a declared threshold not met, 130 interrupted.
"""

import errno
import io
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bedplate import __version__
from bedplate.cli import (
    ask,
    caption,
    doctor,
    draw,
    evaluate,
    finetune,
    generate,
    info,
    launch,
    plan,
    predict,
    prepare,
    pretrain,
    quickstart,
    search,
    tokenizer,
    transfer,
)
from bedplate.cli.output import is_main, say, say_once
from bedplate.errors import InputError, Interrupted, RankError


class Verbs(TyperGroup):
    """Turns what `bedplate` raises on purpose into a sentence on stderr and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own base class is private
        try:
            return super().invoke(ctx)
        except InputError as error:
            say_once(f"Error: {error}")
            raise typer.Exit(2) from error
        except RankError as error:
            say(f"Error: {error}")
            raise typer.Exit(1) from error
        except Interrupted as stop:  # a plain KeyboardInterrupt has nothing to say, and typer exits with 130 itself
            if is_main():  # all ranks stop, and a scheduler counts the seconds until they have
                say(str(stop))
            raise typer.Exit(130) from stop


app = typer.Typer(
    name="bedplate",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: brackets such as [dev] are not markup, and `--help` need not load rich
    epilog="`bedplate COMMAND --help` shows the options of a command with an example.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bedplate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Pre-train, adapt and use Transformer models."""


# In the order of a user's path, which is the order of `--help`.
for _name, _verb in {
    "quickstart": quickstart,
    "plan": plan,
    "pretrain": pretrain,
    "launch": launch,
    "finetune": finetune,
    "transfer": transfer,
    "predict": predict,
    "caption": caption,
    "ask": ask,
    "generate": generate,
    "search": search,
    "draw": draw,
    "evaluate": evaluate,
    "tokenizer": tokenizer,
    "prepare": prepare,
    "info": info,
    "doctor": doctor,
}.items():
    app.command(_name)(_verb.command)


FULL = (errno.ENOSPC, errno.EDQUOT)
OUTSIDE = (
    *(*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
"""What the machine says of a path, where nobody closer to it has said more: no defect of ours."""


def main() -> None:
    """Run the command line of this process and exit. Typer itself handles usage errors (2) and Ctrl-C (130)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model may write what the terminal's encoding does not know
            stream.reconfigure(errors="replace")
    for number, argument in enumerate(sys.argv[1:], 1):
        # Bytes that Python could not decode are surrogates: no tokenizer takes them, but files may have such names.
        value = argument.partition("=")[2] or argument
        is_path = os.path.lexists(value) or os.path.isdir(os.path.dirname(value))
        if any("\ud800" <= character <= "\udfff" for character in argument) and not is_path:
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            say(f"Error: argument {number}, '{shown}', is not UTF-8 and names no file; write it in UTF-8")
            sys.exit(2)
    try:
        app()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OUTSIDE and (error.filename or error.errno in FULL):
            place = f"{error.filename}: " if error.filename else ""
            say(f"Error: {place}{error.strerror}; check the path, its permissions and the disk")
            sys.exit(2)
        say(traceback.format_exc(limit=-6))
        say("Error: this is a defect of bedplate, not of your input. Please report it with the lines above.")
        sys.exit(1)
