"""`bedplate tokenizer`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs, archives, hf: ids.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    vocab_size: Annotated[int, typer.Option(help="Entries, special tokens included.")] = 8192,
    column: Annotated[str, typer.Option(help="The column or key that holds the text.")] = "text",
    json: Json = False,
) -> None:
    """Train a byte-level BPE tokenizer on text.

    \b
    Example:
      bedplate tokenizer my-books/ --out tokenizers/books --vocab-size 16384
    """
    from bedplate.api.tokenizer import tokenizer

    result = tokenizer(data, out, vocab_size=vocab_size, column=column)
    if json:
        print_json(result)
    else:
        print(f"{result['out']}/tokenizer.json: {result['vocab_size']:,} entries")
