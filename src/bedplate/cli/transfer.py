"""`bedplate transfer`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from bedplate.cli.output import Json, print_json


def command(
    data: Annotated[
        list[str],
        typer.Option(help="Labelled texts or pictures: a table, or a folder for each class; may be repeated."),
    ],
    base: Annotated[str, typer.Option(help="The pre-trained model: a directory, zoo:NAME or hf:ORG/NAME.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the training, as of a recipe of finetune."),
    ] = None,
    labels: Annotated[str, typer.Option(help="Numbers of labels to learn from.")] = "100,1000,all",
    seeds: Annotated[int, typer.Option(help="Repetitions with other samples and weights.")] = 3,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Texts or pictures to score on.", show_default="a fifth of the data, at most 2,000"),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the text or picture.", show_default="guessed")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The column of the label.", show_default="guessed")] = None,
    out: Annotated[str, typer.Option(help="Folder for the report and the adapted model.")] = "transfer",
    json: Json = False,
) -> None:
    """Measure what pre-training brings on your labels: adapted, from scratch, and a classic.

    \b
    Example:
      bedplate transfer --data reviews.csv --base quickstart/model --labels 100,1000,all
      bedplate transfer --data photos/ --base runs/mae --labels 100,all
      bedplate transfer --data reviews.csv --base runs/passages --labels 100 optimizer.learning_rate=0.0001
    """
    counts = _counts(labels)
    from bedplate.api.transfer import transfer
    from bedplate.recipe.read import from_overrides

    result = transfer(
        data,
        base,
        labels=counts,
        seeds=seeds,
        test=test or None,
        column=column,
        label=label,
        out=out,
        settings=from_overrides(overrides or ()),
    )
    if json:
        print_json(result)
        return
    print_table(result)
    print(f"Model: {result['model']}\nReport: {result['out']}/report.html")


def print_table(result: Mapping[str, Any]) -> None:
    """Accuracy of each arm for each number of labels, and what pre-training brought."""
    arms = result["arms"]
    width = max(map(len, arms.values()))
    for arm, name in arms.items():
        cells = [f"{row['labels']:>6,}: {_share(row['accuracy'])}" for row in result["rows"] if row["arm"] == arm]
        print(f"{name:<{width}}  {'   '.join(cells)}")
    for row in result["differences"]:
        gain = row["accuracy"]
        print(
            f"{row['labels']:,} labels, adapted less {arms[row['over']]}: {100 * gain['value']:+.1f} points "
            f"(95 % interval {100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        )


def _share(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.1%} ({metric['low']:.1%} to {metric['high']:.1%})"


def _counts(labels: str) -> list[int | Literal["all"]]:
    counts: list[int | Literal["all"]] = []
    for part in labels.split(","):
        word = part.strip().replace("_", "")
        if word == "all":
            counts.append("all")
        elif word.isdecimal() and int(word) > 0:
            counts.append(int(word))
        else:
            raise typer.BadParameter(f"{part!r} is neither a number nor `all`; write for example 100,1000,all")
    return counts
