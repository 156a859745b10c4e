"""`transfer`: did pre-training help on these labels?"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bedplate.api.folders import make_folder, refuse_existing
from bedplate.api.record import environment
from bedplate.api.transfer_images import ImageStudy
from bedplate.api.transfer_study import Asked, Counts, Study
from bedplate.api.transfer_texts import TextStudy
from bedplate.errors import InputError
from bedplate.hub.card import model_card
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.multimodal import MultimodalModel
from bedplate.measure.comparison import PRETRAINED
from bedplate.report.adapt import transfer_report
from bedplate.train.log import write_whole


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
    """Compare on the same labels and test examples: the adapted base, its network from scratch, and a classic.

    The classic is TF-IDF with logistic regression for texts; for pictures these are a linear probe of the frozen base
    and logistic regression on pixels.

    Args:
        data: labelled texts, or for a base that reads pictures labelled pictures (a folder for each class, a table, an
            archive); columns are guessed where `column` and `label` do not name them.
        base: a pre-trained model, as `load` takes it: a language model, or a model of images of any kind.
        labels: numbers of labels to learn from.
        seeds: how often each is repeated, with other samples, weights and orders.
        test: labelled examples to score on; without it a fifth of `data` is kept apart, at most 2,000. What is in both
            is not learnt from.
        column: the column of the text or the picture.
        out: folder for report.html, transfer.json and the model adapted from the most labels.
        settings: sections of a fine-tuning recipe in place of the defaults: model, train, optimizer, schedule; of
            pictures also augment, objective, and of data fit, store, workers and cache.
        say: gets messages for a person; by default they go to stderr.

    Returns:
        {"out", "model", "rows": [{"labels", "arm", "accuracy", "macro_f1", ...}], "differences", ...}, as in
        transfer.json; arms are "pretrained", "scratch" and, with scikit-learn installed, "tfidf"; of pictures
        "pretrained", "scratch", "probe" and "pixels".

    Raises:
        InputError: no labels to learn from, a label of which only the test has examples, a base that is neither a
            language model nor a model of images, or `out` exists.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    out = Path(out).expanduser()
    refuse_existing(out, "remove it, or give another --out")
    started = time.perf_counter()
    if seeds < 1:
        raise InputError(f"seeds={seeds}: at least 1 is needed")
    if isinstance(labels, str):
        raise InputError(f"labels={labels!r}: give a list of numbers, or of numbers and 'all'")
    paths = [str(data)] if isinstance(data, str | Path) else [str(path) for path in data]
    asked = Asked(paths, str(base), labels, seeds, test, column, label, out, settings or {}, say)
    model = load(base, dtype="fp32")
    if isinstance(model, MultimodalModel):
        raise InputError(f"{base}: reads texts and pictures; give a base that reads one of them")
    study: Study = TextStudy(model, asked) if isinstance(model, Model) else ImageStudy(model, asked)
    comparison = study.comparison
    make_folder(out)
    comparison.run(study.counts)
    settled = study.recipe.model_dump(mode="json", include=set(study.sections) - {"data"})
    result = {"name": f"Transfer: {out.name}", "base": asked.base, **comparison.result(), "data": study.facts}
    result |= {"settings": settled, "environment": environment(comparison.hardware)}
    result |= {"timings": {"all": time.perf_counter() - started}}
    try:
        _write(out, result, study)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); free some space, or give another --out"
        ) from error
    return {"out": str(out), "model": str(out / "model"), **result}


def _write(out: Path, result: dict[str, Any], study: Study) -> None:
    """The folder: report, figures, and the model adapted from the most labels with the first seed."""
    result["next"] = study.commands(out)
    write_whole(out / "transfer.json", json.dumps(result, indent=2, ensure_ascii=False))
    base, data = result["base"], result["data"]["path"][0]
    best = [row for row in result["rows"] if row["arm"] == PRETRAINED][-1]
    record = {
        "name": out.name,
        "command": f"bedplate transfer --data {data} --base {base if ':' in base else Path(base).name}",
        "classes": result["classes"],
        **study.card(),
        "metrics": {"accuracy": best["accuracy"], "macro_f1": best["macro_f1"]},
        "parameters": sum(p.numel() for p in study.module.parameters()),
        "environment": result["environment"],
        "description": f"Adapted from {best['labels']:,} labels; the metrics are means over {result['seeds']} seeds.",
    }
    study.save(out / "model", model_card(record))
    shown = {**result, "mistakes": study.shown(result["mistakes"])}
    (out / "report.html").write_text(transfer_report(shown, study.what), "utf-8")
