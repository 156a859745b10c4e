"""`bedplate draw`."""

from __future__ import annotations

from typing import Annotated

import typer

from bedplate.cli.output import Json, print_json


def command(
    prompts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to draw.")],
    out: Annotated[
        str, typer.Option(help="The file; several pictures become NAME-1.png, NAME-2.png. Or a folder.")
    ] = "drawn.png",
    n: Annotated[int, typer.Option("--n", help="Pictures of each text.")] = 1,
    model: Annotated[str, typer.Option(help="A model directory, zoo:NAME or hf:ORG/NAME.")] = "zoo:draw-mini",
    seed: Annotated[int, typer.Option(help="Of a text's first picture; the next has one more.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="How closely the text is followed; 1: as trained.", show_default="3")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0: the likeliest codes; higher: bolder.", show_default="1")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Draw from so many codes only (0: all).")] = 0,
    prefix: Annotated[str | None, typer.Option(help="A picture whose upper rows every drawing begins with.")] = None,
    keep: Annotated[
        float | None, typer.Option(help="With --prefix: the share of its rows that is kept.", show_default="0.5")
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            help="Draw so many for each picture, and keep what fits its text best.",
            show_default="16 of zoo:draw-mini or with --ranker, else 1",
        ),
    ] = None,
    ranker: Annotated[str | None, typer.Option(help="The CLIP that chooses.", show_default="zoo:clip-mini")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Draw pictures from texts.

    \b
    Example:
      bedplate draw "a red heart" --out heart.png --n 4 --seed 0
      bedplate draw "grinning face" "pizza" --out drawings --guidance 2
      bedplate draw "a sunflower" --model runs/draw --best-of 16 --ranker runs/clip --out sunflower.png
      bedplate draw "a dog" --prefix photo.png --keep 0.25 --out dog.png
    """
    from bedplate.api.draw import draw

    options = {"guidance": guidance, "temperature": temperature, "keep": keep}
    rows = draw(
        prompts,
        model,
        out=out,
        overwrite=overwrite,
        n=n,
        seed=seed,
        top_k=top_k or None,
        prefix=prefix,
        best_of=best_of,
        ranker=ranker,
        device=device,
        **{name: value for name, value in options.items() if value is not None},
    )
    if json:
        print_json([{key: value for key, value in row.items() if key != "image"} for row in rows])
        return
    for row in rows:
        print(row["file"])
