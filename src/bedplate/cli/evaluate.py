"""`bedplate evaluate`."""

from typing import Annotated, Any

import typer

from bedplate.cli.answers import print_answers
from bedplate.cli.labels import Calibrate, Examples, Labels, Method, Shots, TemplateOption, line_breaks
from bedplate.cli.output import Json, print_json, print_left_out, say
from bedplate.cli.tasks import print_tasks

BASELINES = {"chance": "accuracy of guessing", "majority": "accuracy of the most frequent label"}


def command(
    model: Annotated[str, typer.Argument(help="A model directory, zoo:NAME or hf:ORG/NAME.")],
    data: Annotated[list[str] | None, typer.Option(help="Text to measure on; may be repeated.")] = None,
    suite: Annotated[str | None, typer.Option(help="A folder of jsonl files, each a task (docs/evaluate.md).")] = None,
    harness: Annotated[
        str | None, typer.Option(help="A folder of yaml tasks for lm-evaluation-harness, which you trust.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="The harness's tasks to run: NAME,NAME.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of each task, its first ones.", show_default="all")] = None,
    scoring: Annotated[
        str | None,
        typer.Option(
            help="How a suite's texts are read: causal, masked or both.",
            show_default="causal; masked for a masked model",
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The column of the text.", show_default="text; guessed for a classifier")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="The column of the label, for a classifier.", show_default="guessed")
    ] = None,
    summary: Annotated[
        str | None, typer.Option(help="The column of the summary, for a summariser.", show_default="guessed")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="The column of the question, for a reader.", show_default="guessed")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="The column of the question's kind, for a reader.", show_default="guessed")
    ] = None,
    probe: Annotated[
        list[str] | None, typer.Option(help="Labelled pictures, to judge a model of images by its features.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="A CLIP that judges a model that draws, trained apart.")] = None,
    best_of: Annotated[int | None, typer.Option(help="Drawings of which a ranker keeps one.", show_default="1")] = None,
    ranker: Annotated[str | None, typer.Option(help="With --best-of: the CLIP that chooses, not the judge.")] = None,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a row.", show_default="the context, at most 1024; a classifier's as trained"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows at one time, of a language model on a text.", show_default="8")
    ] = None,
    isolate_documents: Annotated[
        bool, typer.Option("--isolate-documents", help="Hide the documents of a row from each other.")
    ] = False,
    labels: Labels = None,
    method: Method = None,
    template: TemplateOption = None,
    examples: Examples = None,
    shots: Shots = None,
    seed: Annotated[
        int | None, typer.Option(help="Chooses the examples of labels, or what is drawn.", show_default="0")
    ] = None,
    calibrate: Calibrate = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    adapter: Annotated[str | None, typer.Option(help="A LoRA adapter to put on the model: a folder.")] = None,
    json: Json = False,
) -> None:
    """Measure a model, with 95 % intervals: bits per byte, tasks, accuracy, ROUGE, a detector's mAP.

    \b
    Example:
      bedplate evaluate quickstart/model --data my-text.txt
      bedplate evaluate quickstart/sentiment --data my-reviews.csv
      bedplate evaluate quickstart/model --suite blimp
      bedplate evaluate runs/detect --data coco-folder
      bedplate evaluate runs/summarize --data my-summaries.jsonl
      bedplate evaluate runs/reader --data my-questions.jsonl
      bedplate evaluate quickstart/model --data my-news.csv --labels "sports,politics,business"
      bedplate evaluate runs/draw --data my-pairs --judge runs/contrast
    """
    from bedplate.api.evaluate import evaluate

    options: dict[str, Any] = {
        "method": method,
        "template": line_breaks(template),
        "calibrate": calibrate,
        "judge": judge,
    }
    options |= {"question": question, "kind": kind, "best_of": best_of, "ranker": ranker, "seed": seed}
    result = evaluate(
        model,
        data or None,
        suite=suite,
        harness=harness,
        tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
        limit=limit,
        scoring=scoring,  # type: ignore[arg-type]  # checked there, in the words of every other bad value
        progress=say,
        column=column,
        sequence_length=sequence_length,
        batch_size=batch_size,
        isolate_documents=isolate_documents,
        device=device,
        label=label,
        adapter=adapter,
        summary=summary,
        labels=labels,
        probe=probe or None,
        examples=examples,
        shots=shots,
        **{name: value for name, value in options.items() if value is not None},
    )
    if json:
        print_json(result)
        return
    if "tasks" in result:
        print_tasks(result)
        return
    for name, metric in result["metrics"].items():
        print(f"{name}: {metric['value']:.4f} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})")
    if "unit" in result:
        _print_zero_shot(result)
        return
    if "kinds" in result:
        print_answers(result)
        return
    if "tokens" not in result and "sequence_length" not in result and not result.get("baselines"):
        _print_pictures(result)
        return
    if "lead" in result.get("baselines", {}):
        _print_summariser(result)
        return
    for name, values in result.get("baselines", {}).items():
        share = values["accuracy"]
        print(f"{BASELINES[name]}: {share['value']:.4f} (95 % interval {share['low']:.4f} to {share['high']:.4f})")
    if "labels" in result:
        _print_classifier(result)
        return
    print(f"{result['tokens']:,} tokens, {result['bytes']:,} bytes, rows of {result['sequence_length']} tokens")


def _print_pictures(result: dict[str, Any]) -> None:
    """How many pictures were scored, and of a classifier which labels were taken for which."""
    print(f"{result['n']:,} pictures")
    for name, what in (("data", "pictures"), ("probe", "pictures of --probe")):
        print_left_out(result.get(name, {}), what)
    if same := result.get("probe", {}).get("equal_pictures"):
        print(f"left out: {same:,} pictures of --probe that are scored, too")
    if "confusion" in result:
        _print_confusion(result)


def _print_zero_shot(result: dict[str, Any]) -> None:
    """What guessing reaches, and what was scored."""
    for name, values in result["baselines"].items():
        for metric, share in values.items():
            print(f"{metric} of {name}: {share['value']:.4f}")
    print(f"{result['n']:,} {result['unit']}")
    print_left_out(result["data"], "pictures")
    if cut := result["data"].get("cut"):
        print(f"cut: {cut:,} texts that are longer than the model reads")
    if "confusion" in result:
        _print_confusion(result)


def _print_summariser(result: dict[str, Any]) -> None:
    """What the documents' first sentences score, and what was read."""
    for name, metric in result["baselines"]["lead"].items():
        interval = f"95 % interval {metric['low']:.4f} to {metric['high']:.4f}"
        print(f"first sentence {name}: {metric['value']:.4f} ({interval})")
    data = result["data"]
    print(f"{result['n']:,} documents from column {data['document']!r}, summaries from {data['summary']!r}")
    if data["windowed"]:
        print(f"{data['windowed']:,} documents of more than the model reads at a time were read in windows")


def _print_classifier(result: dict[str, Any]) -> None:
    """What was scored, and which labels were taken for which."""
    data = result["data"]
    print(f"{result['n']:,} texts from column {data['column']!r}, labels from {data['label']!r}")
    for what, count in data["dropped"].items():
        print(f"left out: {count:,} {what}")
    if data.get("cut"):
        print(f"{data['cut']:,} texts were longer than the prompt has room for and cut at their end")
    if data.get("windowed"):
        print(f"{data['windowed']:,} texts of more than {result['sequence_length']} tokens were read in windows")
    _print_confusion(result)


def _print_confusion(result: dict[str, Any]) -> None:
    labels = result["labels"]
    for label, row in zip(labels, result["confusion"], strict=True):
        taken = ", ".join(f"{count:,} {name}" for name, count in zip(labels, row, strict=True) if count)
        print(f"{label}: predicted as {taken or 'nothing'}")
