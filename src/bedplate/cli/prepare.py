"""`bedplate prepare`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs, archives, hf: ids.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json, or a folder that holds one.")],
    column: Annotated[str, typer.Option(help="The column or key that holds the text.")] = "text",
    val_data: Annotated[str | None, typer.Option(help="Held-out text of its own.", show_default="by hash")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.01,
    workers: Annotated[int, typer.Option(help="Processes that tokenise.")] = 1,
    cache: Annotated[
        str | None, typer.Option(help="Folder for the shards.", show_default="$BEDPLATE_CACHE or ~/.cache/bedplate")
    ] = None,
    json: Json = False,
) -> None:
    """Tokenise text into shards ahead of training; a run with the same data and tokenizer finds them.

    \b
    Example:
      bedplate prepare my-books/ --tokenizer tokenizers/books --workers 8
    """
    from bedplate.api.prepare import prepare

    meta = prepare(
        data, tokenizer, column=column, val_data=val_data, val_fraction=val_fraction, workers=workers, cache=cache
    )
    if json:
        print_json(meta)
        return
    for split in ("train", "val"):
        counts = meta[split]
        print(f"{split:<6} {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes")
