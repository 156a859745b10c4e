"""`bedplate evaluate`."""

from typing import Annotated, Any

import typer

from bedplate.cli.labels import Calibrate, Examples, Labels, Method, Seed, Shots, TemplateOption, line_breaks
from bedplate.cli.output import Json, print_json

BASELINES = {"chance": "accuracy of guessing", "majority": "accuracy of the most frequent label"}


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    data: Annotated[list[str], typer.Option(help="Text to measure on; may be repeated.")],
    column: Annotated[
        str | None, typer.Option(help="The column of the text.", show_default="text; guessed for a classifier")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The column of the label, for a classifier.", show_default="guessed")
    ] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a row.", show_default="the model's context, at most 1024; a classifier's 512"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows at one time.")] = 8,
    isolate_documents: Annotated[
        bool, typer.Option("--isolate-documents", help="Hide the documents of a row from each other.")
    ] = False,
    labels: Labels = None,
    method: Method = None,
    template: TemplateOption = None,
    examples: Examples = None,
    shots: Shots = None,
    seed: Seed = 0,
    calibrate: Calibrate = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Measure a model, with 95 % intervals: bits per byte on text, or a classifier's accuracy on labelled texts.

    \b
    Example:
      bedplate evaluate quickstart/model --data my-text.txt
      bedplate evaluate quickstart/sentiment --data my-reviews.csv
      bedplate evaluate quickstart/model --data my-news.csv --labels "sports,politics,business"
    """
    from bedplate.api.evaluate import evaluate

    options = {"method": method, "template": line_breaks(template), "calibrate": calibrate}
    result = evaluate(
        model,
        data,
        column=column,
        sequence_length=sequence_length,
        batch_size=batch_size,
        isolate_documents=isolate_documents,
        device=device,
        label=label,
        labels=labels,
        examples=examples,
        shots=shots,
        seed=seed,
        **{name: value for name, value in options.items() if value is not None},
    )
    if json:
        print_json(result)
        return
    for name, metric in result["metrics"].items():
        print(f"{name}: {metric['value']:.4f} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})")
    for name, values in result.get("baselines", {}).items():
        share = values["accuracy"]
        print(f"{BASELINES[name]}: {share['value']:.4f} (95 % interval {share['low']:.4f} to {share['high']:.4f})")
    if "labels" in result:
        _print_classifier(result)
        return
    print(f"{result['tokens']:,} tokens, {result['bytes']:,} bytes, rows of {result['sequence_length']} tokens")


def _print_classifier(result: dict[str, Any]) -> None:
    """What was scored, and which labels were taken for which."""
    data, labels = result["data"], result["labels"]
    print(f"{result['n']:,} texts from column {data['column']!r}, labels from {data['label']!r}")
    for what, count in data["dropped"].items():
        print(f"left out: {count:,} {what}")
    if data.get("cut"):
        print(f"{data['cut']:,} texts were longer than the prompt has room for and cut at their end")
    if data.get("windowed"):
        print(f"{data['windowed']:,} texts of more than {result['sequence_length']} tokens were read in windows")
    for label, row in zip(labels, result["confusion"], strict=True):
        taken = ", ".join(f"{count:,} {name}" for name, count in zip(labels, row, strict=True) if count)
        print(f"{label}: predicted as {taken or 'nothing'}")
