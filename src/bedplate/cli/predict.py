"""`bedplate predict`."""

from typing import Annotated, Any

import typer

from bedplate.cli.labels import Calibrate, Examples, Labels, Method, Shots, TemplateOption, line_breaks
from bedplate.cli.output import Json, print_json, say
from bedplate.errors import InputError


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts, or pictures.")] = None,
    file: Annotated[str | None, typer.Option(help="A .txt (one text), or .csv, .jsonl, ... (one a row).")] = None,
    column: Annotated[
        str | None, typer.Option(help="The column in the file.", show_default="text; guessed for pictures")
    ] = None,
    beams: Annotated[int | None, typer.Option(help="Beams of the search; 1: none.", show_default="the model's")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Above 0 favours long texts, below 0 short ones.", show_default="the model's")
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, typer.Option(help="No run of this many tokens twice; 0: any may.", show_default="the model's")
    ] = None,
    min_new_tokens: Annotated[int | None, typer.Option(help="Tokens at least.", show_default="the model's")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Tokens at most.", show_default="the model's")] = None,
    long: Annotated[
        str | None,
        typer.Option(
            help="Of a document longer than a summariser reads: its parts' summaries (join), a summary of these "
            "(reduce), or that of its first part (first).",
            show_default="join",
        ),
    ] = None,
    labels: Labels = None,
    method: Method = None,
    template: TemplateOption = None,
    examples: Examples = None,
    shots: Shots = None,
    seed: Annotated[
        int | None, typer.Option(help="Chooses examples, and what is written by chance.", show_default="0 for examples")
    ] = None,
    calibrate: Calibrate = None,
    draw: Annotated[
        str | None, typer.Option(help="Write the picture with what was found: a .png, of several a folder.")
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="With --draw: beside the picture, where the model looks.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that --draw finds there.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Of a detector, the least score of a box.", show_default="0.3")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the model: a folder.")] = None,
    json: Json = False,
) -> None:
    """Use a model: a text's label, summary or continuation, the label that fits it best; what a picture shows.

    \b
    Example:
      bedplate predict quickstart/sentiment "A film of rare beauty." "Two hours of my life, gone."
      bedplate predict zoo:text-mini "The match ended 2-1." --labels "sports,politics,business"
      bedplate predict runs/detect photo.jpg --draw found.png
      bedplate predict runs/photos photo.jpg --draw looks.png --attention
      bedplate predict runs/summarize --file article.txt --beams 4
    """
    from bedplate.api.predict import predict

    options: dict[str, Any] = {
        "num_beams": beams,
        "length_penalty": length_penalty,
        "no_repeat_ngram_size": no_repeat_ngram,
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "long": long,
        "method": method,
        "template": line_breaks(template),
        "calibrate": calibrate,
        "threshold": threshold,
    }
    predictions = predict(
        model,
        texts or (),
        file=file,
        column=column,
        device=device,
        adapter=adapter,
        labels=labels,
        examples=examples,
        shots=shots,
        seed=seed,
        draw=draw,
        attention=attention,
        overwrite=overwrite,
        progress=say,
        **{name: value for name, value in options.items() if value is not None},
    )
    if predictions and isinstance(predictions[0], dict) and "image" in predictions[0]:
        raise InputError(f"{model} draws; to keep its pictures use bedplate draw TEXT --model {model} --out FILE")
    if json:
        print_json(predictions)
        return
    names = _names(texts or [], len(predictions))
    for name, prediction in zip(names, predictions, strict=True):
        if prediction is None:  # a picture that cannot be decoded, which has been said
            continue
        if isinstance(prediction, list):
            _print_boxes(prediction, name)
        elif "label" in prediction:
            shown = f"  {' '.join(name.split())[:100]}" if name else ""
            print(f"{prediction['label']}\t{prediction['score']:.3f}{shown}")
        elif "codes" in prediction:
            print(f"{name}\t{prediction['codes']}")
        else:
            print(prediction.get("text") or prediction.get("drawn", ""))


def _names(texts: list[str], count: int) -> list[str]:
    """What each prediction is of: a text or a picture as it was given, a picture of a folder by its path."""
    if not texts:
        return [""] * count
    from bedplate.api.vision_draw import is_folder, pictures_below

    each = [str(one) for text in texts for one in (pictures_below(text) if is_folder(text) else [text])]
    return each if len(each) == count else texts  # to a model of texts a folder's name is a text


def _print_boxes(found: list[dict[str, Any]], name: str) -> None:
    """A line a box: label, score, corners in pixels."""
    print(f"{name or 'picture'}: {len(found)} found")
    for row in found:
        corners = " ".join(f"{value:.0f}" for value in row["box"])
        print(f"  {row['label']}\t{row['score']:.3f}\t{corners}")
