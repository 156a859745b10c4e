"""The options of a choice between labels that a model has not learnt, which `predict` and `evaluate` share."""

from typing import Annotated

import typer

Labels = Annotated[
    str | None,
    typer.Option(
        help="Labels to choose between without training: sports,politics or 'good=great; bad=terrible, a bore', "
        "each with the words that the model reads for it."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        help="embedding: the nearest words; prompt: the likeliest in the template.",
        show_default="embedding; with a template, prompt",
    ),
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", help="A prompt with {text} and {label}; a backslash and n make a line break."),
]
Examples = Annotated[str | None, typer.Option(help="A file of labelled texts to take examples from.")]
Shots = Annotated[int | None, typer.Option(help="Examples of each label.", show_default="4 with --examples")]
Calibrate = Annotated[
    bool | None,
    typer.Option(
        "--calibrate/--no-calibrate",
        help="Take a prompt's scores relative to those of a text without content.",
        show_default="calibrate",
    ),
]


def line_breaks(template: str | None) -> str | None:
    """A template as a shell hands it over, in which a line break is easier written as \\n."""
    return None if template is None else template.replace("\\n", "\n")
