"""`bedplate prepare`."""

import time
from collections.abc import Callable
from typing import Annotated, Literal

import typer

from bedplate.cli.output import Json, print_json, say

EVERY = 10.0
"""Seconds between two lines of progress."""


def command(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Files, folders, globs, archives, URLs, hf: ids.")
    ],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json, or a folder that holds one.")],
    column: Annotated[str, typer.Option(help="The column or key that holds the text.")] = "text",
    val_data: Annotated[str | None, typer.Option(help="Held-out text of its own.", show_default="by hash")] = None,
    val_fraction: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.01,
    workers: Annotated[int, typer.Option(help="Processes that tokenise.")] = 1,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where they run: here, or on the Ray cluster of $RAY_ADDRESS.")
    ] = "local",
    cache: Annotated[
        str | None,
        typer.Option(help="Folder or URL for the shards.", show_default="$BEDPLATE_CACHE or ~/.cache/bedplate"),
    ] = None,
    json: Json = False,
) -> None:
    """Tokenise text into shards ahead of training; a run with the same data and tokenizer finds them.

    A preparation that was stopped or killed goes on when the same command is given again.

    \b
    Example:
      bedplate prepare my-books/ --tokenizer tokenizers/books --workers 8
      bedplate prepare "s3://bucket/*.parquet" --tokenizer tokenizers/books --cache s3://bucket/cache --engine ray
    """
    from bedplate.api.prepare import prepare

    meta = prepare(
        data,
        tokenizer,
        column=column,
        val_data=val_data,
        val_fraction=val_fraction,
        workers=workers,
        engine=engine,
        cache=cache,
        on_progress=_progress(),
    )
    if json:
        print_json(meta)
        return
    for split in ("train", "val"):
        counts = meta[split]
        print(f"{split:<6} {counts['documents']:,} documents, {counts['tokens']:,} tokens, {counts['bytes']:,} bytes")


def _progress() -> Callable[[int, int, int], None]:
    """Says now and then how far it is; the speed is that since the last time."""
    last: tuple[float, int] | None = None

    def progress(documents: int, tokens: int, text_bytes: int) -> None:
        nonlocal last
        now = time.monotonic()
        if last is None:
            last = now, tokens  # of these most may be from before a kill
        elif now - last[0] >= EVERY:
            speed = (tokens - last[1]) / (now - last[0])
            say(f"{documents:,} documents, {tokens:,} tokens, {text_bytes:,} bytes of text, {speed:,.0f} tokens/s")
            last = now, tokens

    return progress
