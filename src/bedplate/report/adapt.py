"""The pages of adaptation: what pre-training is worth for a task (`transfer_report`), and one fine-tuned classifier
(`finetune_report`). Each is `page.run_report` with sections of its own, which other pages may show too.

A metric is {"value", "low", "high"} as `bedplate.metrics` returns it; accuracies and F1 lie between 0 and 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report.page import by_step, chart, duration, percent, quotes, run_report, table, text
from bedplate.report.pictures import predictions
from bedplate.report.plot import WIDTH, clip, interval_chart, line_chart, matrix_chart

Sections = list[tuple[str, list[str]]]

SHOWN_MISTAKES = 10
SHOWN_CHARACTERS = 400  # of a text that was labelled wrong
NAMED_CLASSES = 8  # more are only counted

INTERVAL = (
    "In brackets the 95 % interval, the range that the measurement leaves plausible: {others} would move a value about "
    "so far."
)
F1 = (
    "Precision: of the {what} that were given a class, how many belong to it. Recall: of the {what} of a class, how "
    "many were found. F1 is high only if both are. Macro F1 is the mean of F1 over the classes, so that a rare class "
    "counts as much as a frequent one."
)
ARMS = {  # within a sentence
    "pretrained": "the adapted model",
    "scratch": "the same network from scratch",
    "probe": "a linear probe of the frozen base",
    "pixels": "logistic regression on pixels",
}
QUALITY = {"val_accuracy": "accuracy", "val_macro_f1": "macro F1"}


def transfer_report(result: Mapping[str, Any], what: str = "texts") -> str:
    """The page of a `transfer` result: `transfer_sections`, with its settings, environment, timings and next steps.

    The figures on top are those of the first arm with the most labels; `what` are the labelled things.
    """
    first = next(iter(result["arms"]))
    best: Mapping[str, Any] = max(
        (row for row in result["rows"] if row["arm"] == first), key=lambda row: row["labels"], default={}
    )
    summary = _flat("test", best) | ({"majority": result["majority"]} if "majority" in result else {})
    record = {**result, "summary": summary, "sections": transfer_sections(result, what)}
    return run_report(record | {"headlines": {"test_accuracy": (f"Test {what}", "labelled right")}})


def transfer_sections(result: Mapping[str, Any], what: str = "texts") -> Sections:
    """What pre-training is worth: the chart, the differences in words, all figures, and where the model errs.

    `result` holds "classes", "seeds", "data" (facts, see `data_section`), "arms" ({arm: name}), "rows" ({"labels",
    "arm", "accuracy", "macro_f1", "by_seed": accuracies, "seconds"}) and, each optional: "differences" ({"labels",
    "arm", "over", "accuracy"}), "majority" (the accuracy of the most frequent class), "confusion" ({"labels", "arm",
    "matrix"}) and "mistakes" ({"text", "label", "predicted", "score"}, of pictures "image" in place of "text").
    """
    arms, rows, data = result["arms"], result["rows"], result["data"]
    ordered = sorted(rows, key=lambda row: (row["labels"], list(arms).index(row["arm"])))
    series = {
        name: [(_labels(row, data), *_percents(row["accuracy"])) for row in ordered if row["arm"] == arm]
        for arm, name in arms.items()
    }
    majority = ("always the most frequent class", 100 * result["majority"]) if "majority" in result else None
    drawn = interval_chart(
        {name: points for name, points in series.items() if points},
        title="Accuracy by number of labels",
        x_label=f"labelled {what} to learn from",
        y_label=f"% of the test {what} labelled right, with 95 % intervals",
        baseline=majority,
    )
    explained = text(INTERVAL.format(others=f"other test {what} and other seeds"), F1.format(what=what), muted=True)
    sections: Sections = [
        ("What pre-training is worth", [text(*_task(result, what)), chart(drawn), text(*_differences(result, what))]),
        ("All figures", [_arms_table(ordered, arms, data), explained]),
    ]
    if confusion := result.get("confusion"):
        whose = f"{arms[confusion['arm']]}, {_labels(confusion, data)} labels, on the test {what}."
        sections.append(
            ("Where it is right and wrong", confusion_blocks(confusion["matrix"], result["classes"], whose, what))
        )
    return [*sections, *_mistakes(result.get("mistakes", [])), *data_section(data, what)]


def finetune_report(record: Mapping[str, Any]) -> str:
    """The page of a fine-tuning run: as `page.run_report`, with `finetune_sections` in place of bits per byte."""
    measured = _flat("val", record.get("validation", {})) | _flat("test", record.get("test", {}).get("metrics", {}))
    summary = {**record.get("summary", {}), **measured}
    return run_report({**record, "summary": summary, "metrics": [], "sections": finetune_sections(record)})


def finetune_sections(record: Mapping[str, Any]) -> Sections:
    """How a classifier learned, how good it is, class by class, and where it errs.

    `record` holds "classes" and, each optional: "metrics" (the rows of metrics.jsonl), "validation" ({"accuracy",
    "macro_f1", "loss"}), "test" ({"metrics": same, "n"}), "confusion" (the matrix), "per_class" (of
    `metrics.classification.per_class`) and "mistakes", these three of the test texts where "test" is given and else of
    the validation texts, and "data" (facts, see `data_section`).
    """
    classes, sections = record["classes"], []
    if record.get("metrics"):
        sections.append(("How it learned", curves(record["metrics"])))
    sets = {"Validation": record.get("validation"), "Test": record.get("test", {}).get("metrics")}
    measured = {name: metrics for name, metrics in sets.items() if metrics}
    if measured:
        head = ["Texts", "Number", "Accuracy", "Macro F1", "Loss"]
        keys = ("accuracy", "macro_f1", "loss")
        rows = [
            [name, f"{metrics['accuracy']['n']:,}", *(with_interval(metrics, key) for key in keys)]
            for name, metrics in measured.items()
        ]
        explained = text(INTERVAL.format(others="other texts of the same kind"), muted=True)
        sections.append(("How good it is", [table(rows, head), explained]))
    if "confusion" in record:
        whose = "On the test texts." if "test" in record else "On the validation texts."
        sections.append(("Where it is right and wrong", confusion_blocks(record["confusion"], classes, whose)))
    if "per_class" in record:
        sections.append(("Class by class", classes_blocks(record["per_class"], classes)))
    return [*sections, *_mistakes(record.get("mistakes", [])), *data_section(record.get("data", {}))]


def _task(result: Mapping[str, Any], what: str) -> list[str]:
    classes, seeds, test = result["classes"], result["seeds"], result["data"]["test"]
    named = ", ".join(classes) if len(classes) <= NAMED_CLASSES else f"one of {len(classes):,} classes"
    again = "" if seeds == 1 else f" This was done {seeds} times, each with another choice of {what} and random start."
    return [
        f"The task is to give a {what.removesuffix('s')} its label: {named}. Every way of learning had the same "
        f"labelled {what}, and was tested on the same {test:,} {what}, which were kept apart.{again}"
    ]


def _differences(result: Mapping[str, Any], what: str) -> list[str]:
    """Each difference as a sentence. Points are percentage points of accuracy."""
    names = {arm: ARMS.get(arm, name) for arm, name in result["arms"].items()}
    sentences = []
    for row in result.get("differences", []):
        value, low, high = _percents(row["accuracy"])
        alone = (row["arm"], row["over"]) == ("pretrained", "scratch")  # nothing but pre-training tells these two apart
        who, over = "pre-training" if alone else names[row["arm"]], names[row["over"]]
        if low <= 0 <= high:
            said = f"the data does not show a difference between {names[row['arm']]} and {over}: {value:+.1f} points"
            interval = f"{low:+.1f} to {high:+.1f}"
        elif low > 0:
            said, interval = f"{who} gives {value:.1f} points over {over}", f"{low:.1f} to {high:.1f}"
        else:
            said, interval = f"{who} loses {-value:.1f} points against {over}", f"{-high:.1f} to {-low:.1f}"
        sentences.append(f"With {_labels(row, result['data'])} labels, {said} (95 % interval {interval}).")
    return [*sentences, f"A point is one more of 100 test {what} labelled right."] if sentences else []


def _arms_table(rows: Sequence[Mapping[str, Any]], arms: Mapping[str, str], data: Mapping[str, Any]) -> str:
    head = ["Learned by", "Labels", "Accuracy", "Seed by seed", "Macro F1", "Time"]
    return table(
        (
            [
                clip(arms[row["arm"]], 60),
                _labels(row, data),
                with_interval(row, "accuracy"),
                ", ".join(f"{100 * value:.1f}" for value in row["by_seed"]),
                with_interval(row, "macro_f1"),
                duration(row["seconds"]),
            ]
            for row in rows
        ),
        head,
    )


def confusion_blocks(
    matrix: Sequence[Sequence[int]], classes: Sequence[str], whose: str, what: str = "texts"
) -> list[str]:
    """A confusion matrix with the sentences that it needs; `whose` is one that says of which data it is."""
    wrong = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j]
    count, i, j = max(wrong, key=lambda each: each[0])
    explained = (
        f"{whose} Each row holds the {what} of one label, each column those for which the model said that label: in "
        "the framed cells the two agree, in all others the model was wrong. The stronger the colour of a cell, the "
        "larger its share of the row."
    )
    most = f"No {what.removesuffix('s')} was given a wrong label."
    if count:
        of = f"{count:,} of {sum(matrix[i]):,} {what} labelled “{classes[i]}”"
        most = f"The most frequent mistake: the model took {of} for “{classes[j]}”."
    return [text(explained, most), chart(matrix_chart(matrix, classes, title="Confusion matrix", what=what))]


def classes_blocks(scores: Sequence[Mapping[str, Any]], classes: Sequence[str], what: str = "texts") -> list[str]:
    """{"precision", "recall", "f1", "n"} of each class as a table; a share is a number or a metric with an interval."""
    rows = (
        [name, f"{row['n']:,}", *(_share(row, key) for key in ("precision", "recall", "f1"))]
        for name, row in zip(classes, scores, strict=True)
    )
    head = ["Class", what.capitalize(), "Precision", "Recall", "F1"]
    return [table(rows, head), text(F1.format(what=what), muted=True)]


def _share(row: Mapping[str, Any], key: str) -> str:
    return with_interval(row, key) if isinstance(row[key], Mapping) else percent(row[key])


def _mistakes(mistakes: Sequence[Mapping[str, Any]]) -> Sections:
    if not mistakes:
        return []
    surest = sorted(mistakes, key=lambda row: -row["score"])[:SHOWN_MISTAKES]
    explained = (
        "Wrong labels that the model was surest of. Some of them may be mistakes in the data rather than of the model."
    )
    if "image" in surest[0]:
        return [("Its surest mistakes", [predictions(surest, caption=explained)])]
    items = []
    for row in surest:
        note = f"said “{row['predicted']}”\nlabelled “{row['label']}”\n{percent(row['score'])} sure"
        items.append((note, clip(row["text"], SHOWN_CHARACTERS)))
    return [("Its surest mistakes", [text(explained, muted=True), quotes(items)])]


def data_section(data: Mapping[str, Any], what: str = "texts") -> Sections:
    """The facts that are given of "path", "column", "label", "train", "unlabelled", "val", "test",
    "near_duplicates", "equal_pictures", "truncated" and "dropped" ({what: count})."""
    named = what.capitalize()
    facts = {
        "path": "Read from",
        "column": f"Column of the {what}",
        "label": "Column of the labels",
        "train": f"{named} to learn from",
        "unlabelled": f"{named} without labels, read by the teacher",
        "val": f"{named} to validate",
        "test": f"{named} to test",
        "near_duplicates": f"Near-duplicates of held-out {what}",
        "equal_pictures": "Pictures left out that are held out as well",
        "truncated": f"{named} cut to what the model can read",
    }
    rows = [(name, _fact(data[key])) for key, name in facts.items() if data.get(key) is not None]
    rows += [(f"Left out: {what}", f"{count:,}") for what, count in data.get("dropped", {}).items()]
    return [("The data", [table(rows)])] if rows else []


def _fact(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def curves(rows: Sequence[Mapping[str, Any]], shares: Mapping[str, str] = QUALITY, what: str = "texts") -> list[str]:
    """How the shares ({key of metrics.jsonl: name}), the loss and the learning rate went."""
    explained = (
        f"Validation {what} are kept apart from those that the model learns from. Where their loss rises while that of "
        f"training still falls, the model has begun to learn its {what} by heart."
    )
    quality = {name: [(step, 100 * value) for step, value in by_step(rows, key)] for key, name in shares.items()}
    loss = {"validation": by_step(rows, "val_loss"), "training": by_step(rows, "loss")}
    rate = {"learning rate": by_step(rows, "learning_rate")}
    pair = [
        line_chart(lines, title=title, x_label="step", y_label=y_label, width=WIDTH / 2)
        for lines, title, y_label in ((loss, "Loss", "nats, lower is better"), (rate, "Learning rate", "as scheduled"))
        if any(lines.values())
    ]
    learning = line_chart(quality, title=f"On validation {what}", x_label="step", y_label="%, higher is better")
    return [text(explained, muted=True), chart(learning), f'<div class="pair">{"".join(map(chart, pair))}</div>']


def _flat(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The accuracy as a run's summary has it: {"val_accuracy", "val_accuracy_low", "val_accuracy_high"}."""
    metric = metrics.get("accuracy", {})
    ends = {"value": "", "low": "_low", "high": "_high"}
    return {f"{prefix}_accuracy{end}": metric[key] for key, end in ends.items() if key in metric}


def _labels(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """`100`, or `all 6,530` where nothing more is there to learn from."""
    return f"{'all ' if row['labels'] == data.get('train') else ''}{row['labels']:,}"


def _percents(metric: Mapping[str, float]) -> tuple[float, float, float]:
    return 100 * metric["value"], 100 * metric["low"], 100 * metric["high"]


def with_interval(metrics: Mapping[str, Any], key: str) -> str:
    """`87.1 % (85.6 to 88.4)`; a loss is no share."""
    if key not in metrics:
        return "–"
    if key == "loss":
        return "{value:.3f} ({low:.3f} to {high:.3f})".format(**metrics[key])
    value, low, high = _percents(metrics[key])
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"
