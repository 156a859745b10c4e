"""`bedplate search`."""

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json, say


def command(
    folder: Annotated[str, typer.Argument(help="Pictures: a folder, or a table or archive of them.")],
    query: Annotated[str, typer.Argument(help="What to look for in words, or a picture.")],
    model: Annotated[str, typer.Option(help="A CLIP: a model directory, zoo:NAME or hf:ORG/NAME.")] = "zoo:clip-mini",
    n: Annotated[int, typer.Option(help="How many pictures.")] = 10,
    index: Annotated[
        str | None, typer.Option(help="The index file.", show_default="one in the cache, by folder and model")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The pictures' column in a table.", show_default="guessed")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Find the pictures that a text, or another picture, is most like. The next search reads new pictures alone.

    \b
    Example:
      bedplate search photos/ "a sad face"
      bedplate search photos/ photos/cat.jpg --n 5 --model runs/clip
    """
    from bedplate.api.search import search

    found = search(folder, query, model=model, n=n, index=index, column=column, device=device, progress=say)
    if json:
        print_json(found)
        return
    for row in found:
        print(f"{row['score']:.3f}\t{row['path']}")
