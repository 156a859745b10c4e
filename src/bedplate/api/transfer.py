"""`transfer`: did pre-training help on these labels?"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bedplate.api.finetune_classify import without_duplicates
from bedplate.api.folders import cache_folder, make_folder, refuse_existing
from bedplate.api.record import environment
from bedplate.data.labelled import LabelledTexts, read_labelled, split_labelled
from bedplate.data.sources import content_hash
from bedplate.errors import InputError
from bedplate.hub.card import model_card
from bedplate.hub.model import Model, load
from bedplate.measure.comparison import PRETRAINED
from bedplate.measure.transfer import Transfer
from bedplate.recipe import FinetuneRecipe, read_finetune_recipe
from bedplate.report.adapt import transfer_report
from bedplate.train.log import write_whole

Counts = Sequence[int | Literal["all"]]
TEST_SHARE, TEST_MOST = 0.2, 2000  # of the rows, where no test file is given


def transfer(
    data: str | Path | Sequence[str | Path],
    base: str | Path,
    *,
    labels: Counts = (100, 1000, "all"),
    seeds: int = 3,
    test: str | Path | Sequence[str | Path] | None = None,
    column: str | None = None,
    label: str | None = None,
    out: str | Path = "transfer",
    settings: Mapping[str, Any] | None = None,
    say: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Compare, on the same labels and test texts: the adapted base, its network from scratch, TF-IDF.

    Args:
        data: labelled texts; columns are guessed and said where `column` and `label` do not name them.
        base: a pre-trained language model, as `load` takes it.
        labels: numbers of labels to learn from.
        seeds: how often each is repeated, with other samples, weights and orders.
        test: labelled texts to score on; without it a fifth of `data` is kept apart, at most 2,000 rows.
        out: folder for report.html, transfer.json and the model adapted from the most labels.
        settings: sections of a fine-tuning recipe in place of the defaults: model, train, optimizer, schedule.
        say: gets messages for a person; by default they go to stderr.

    Returns:
        {"out", "model", "rows": [{"labels", "arm", "accuracy", "macro_f1", ...}], "differences", ...}, as in
        transfer.json; arms are "pretrained", "scratch" and, with scikit-learn installed, "tfidf".

    Raises:
        InputError: no labels to learn from, a label of which only the test has texts, a base that is no language model,
            or `out` exists.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    out = Path(out)
    refuse_existing(out, "remove it, or give another --out")
    started = time.perf_counter()
    if seeds < 1:
        raise InputError(f"seeds={seeds}: at least 1 is needed")
    paths = [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]
    recipe = _recipe(base, paths, out, settings or {})
    model = load(base, dtype="fp32")
    model.merge_adapter()
    model.need_language_model()
    model.need_tokenizer()
    train, held_out, facts = read_apart(paths, test, column, label)
    for line in sentences(facts):
        say(line)
    counts = _counts(labels, train, say)
    comparison = Transfer(model, train, held_out, recipe, seeds, say)
    if windowed := comparison.test_rows.windowed:
        say(f"{windowed:,} of the test texts are longer than {comparison.length} tokens and are read in windows.")
    make_folder(out)
    comparison.run(counts)
    settled = recipe.model_dump(mode="json", include={"model", "train", "optimizer", "schedule"})
    result = {
        "name": f"Transfer: {out.name}",
        "base": comparison.recipe.base,
        **comparison.result(),
        "data": facts | {"windowed": windowed},
    }
    result |= {"settings": settled, "environment": environment(comparison.hardware)}
    result |= {"timings": {"all": time.perf_counter() - started}}
    try:
        _write(out, result, comparison, facts, paths)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); free some space, or give another --out"
        ) from error
    return {"out": str(out), "model": str(out / "model"), **result}


def read_apart(
    data: Sequence[str], test: Any, column: str | None, label: str | None
) -> tuple[LabelledTexts, LabelledTexts, dict[str, Any]]:
    """(texts to learn from, texts to score on, what was found); near-duplicates of the latter are not in the former."""
    whole = read_labelled(data, column, label)
    if test is None:
        train, held_out = split_labelled(whole, min(TEST_SHARE, TEST_MOST / len(whole)), seed=0)
    else:
        train, held_out = whole, read_labelled(test, whole.column, whole.label, classes=whole.classes)
    train, near = without_duplicates(train, held_out)
    facts = {
        "path": [Path(path).name for path in data],
        "fingerprint": content_hash(list(data), cache_folder()),
        "column": whole.column,
        "label": whole.label,
        "train": len(train),
        "test": len(held_out),
        "dropped": dict(whole.dropped),
        "near_duplicates": near,
        "doubts": whole.doubts(),
    }
    return train, held_out, facts


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What was found in the data, for a person."""
    lines = [
        f"Texts from column {facts['column']!r}, labels from {facts['label']!r}: {facts['train']:,} to learn from, "
        f"{facts['test']:,} to score on."
    ]
    if facts["dropped"]:
        lines.append("Left out: " + ", ".join(f"{count:,} {what}" for what, count in facts["dropped"].items()) + ".")
    if facts["near_duplicates"]:
        lines.append(f"{facts['near_duplicates']:,} near-duplicates of test texts were removed from the training.")
    return [*lines, *facts["doubts"]]


def _recipe(base: str | Path, paths: list[str], out: Path, settings: Mapping[str, Any]) -> FinetuneRecipe:
    if wrong := sorted(settings.keys() - {"model", "train", "optimizer", "schedule"}):
        raise InputError(f"settings: {wrong[0]!r} is no part of a comparison; it has model, train, optimizer, schedule")
    if settings.get("train", {}).get("ema") is not None:
        raise InputError("settings: train.ema is not used in comparisons; leave it out")
    return read_finetune_recipe({**settings, "base": str(base), "out": str(out), "data": {"path": paths}})


def _counts(labels: Counts, train: LabelledTexts, say: Callable[[str], object]) -> list[int]:
    """The numbers of labels that there are, ascending; what is more than there is, is said."""
    wanted = {len(train) if count == "all" else count for count in labels}
    for count in sorted(wanted):
        if count < len(train.classes):
            raise InputError(
                f"labels={count}: fewer than one for each of {len(train.classes)} classes; give at least that many"
            )
        if count > len(train):
            say(f"{count:,} labels are left out: there are {len(train):,} to learn from.")
    if not (counts := sorted(count for count in wanted if count <= len(train))):
        raise InputError(
            f"no number of labels is left: there are {len(train):,} texts to learn from; give fewer, or all"
        )
    return counts


def _write(out: Path, result: dict[str, Any], comparison: Transfer, facts: dict[str, Any], paths: list[str]) -> None:
    """The folder: report, figures, and the model adapted from the most labels with the first seed."""
    assert comparison.kept is not None
    data = [f"data.path={paths[0]}", f"data.column={facts['column']}", f"data.label={facts['label']}"]
    result["next"] = [
        f'bedplate predict {out}/model "A text of your own"',
        shlex.join(["bedplate", "finetune", "recipes/classify.yaml", f"base={comparison.recipe.base}", *data]),
    ]
    write_whole(out / "transfer.json", json.dumps(result, indent=2, ensure_ascii=False))
    base = comparison.recipe.base
    best = [row for row in result["rows"] if row["arm"] == PRETRAINED][-1]
    record = {
        "name": out.name,
        "command": f"bedplate transfer --data {facts['path'][0]} --base {base if ':' in base else Path(base).name}",
        "classes": result["classes"],
        "pooling": comparison.kept[0].pooling,
        "family": comparison.kept[0].config.family,
        "metrics": {"accuracy": best["accuracy"], "macro_f1": best["macro_f1"]},
        "parameters": sum(p.numel() for p in comparison.kept[0].parameters()),
        "environment": result["environment"],
        "description": f"Adapted from {best['labels']:,} labels; the metrics are means over {result['seeds']} seeds.",
    }
    of = comparison.base
    adapted = Model(comparison.kept[0], of.tokenizer, model_card(record), of.special, of.tokenizer_config)
    adapted.save(out / "model")
    (out / "report.html").write_text(transfer_report(result), "utf-8")
