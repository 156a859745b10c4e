"""The pages of adaptation: what they say follows from the figures, and they are whole whatever is missing."""

import copy
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from bedplate.report.adapt import finetune_report, finetune_sections, transfer_report, transfer_sections
from bedplate.report.page import run_report

HOSTILE = '<script>alert(1)</script> & "quotes"'
VOID = {"meta"}


def metric(value: float, low: float, high: float, n: int = 2000) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "n": n}


@pytest.fixture
def result() -> dict[str, Any]:
    accuracies = {100: (0.61, 0.58, 0.62), 6530: (0.871, 0.8, 0.791)}
    arms = ("pretrained", "scratch", "tfidf")
    rows = [
        {
            "labels": labels,
            "arm": arm,
            "accuracy": metric(value, value - 0.015, value + 0.013),
            "macro_f1": metric(value - 0.01, value - 0.03, value + 0.01),
            "by_seed": [value, value + 0.004, value - 0.004],
            "seconds": 12.3,
        }
        for labels, values in accuracies.items()
        for arm, value in zip(arms, values, strict=True)
    ]
    return {
        "name": "reviews",
        "base": "quickstart/model",
        "classes": ["negative", "positive"],
        "seeds": 3,
        "data": {
            "path": "reviews.csv",
            "column": "text",
            "label": "label",
            "train": 6530,
            "test": 2000,
            "dropped": {"empty texts": 1},
            "near_duplicates": 12,
            "truncated": 3,
        },
        "arms": {
            "pretrained": "Adapted from quickstart/model",
            "scratch": "Same network from scratch",
            "tfidf": "TF-IDF + logistic regression",
        },
        "rows": rows,
        "differences": [
            {"labels": 100, "arm": "pretrained", "over": "scratch", "accuracy": metric(0.03, -0.002, 0.06)},
            {"labels": 100, "arm": "pretrained", "over": "tfidf", "accuracy": metric(-0.031, -0.05, -0.012)},
            {"labels": 6530, "arm": "pretrained", "over": "scratch", "accuracy": metric(0.071, 0.049, 0.092)},
            {"labels": 6530, "arm": "scratch", "over": "tfidf", "accuracy": metric(0.009, 0.002, 0.016)},
        ],
        "majority": 0.5,
        "confusion": {"labels": 6530, "arm": "pretrained", "matrix": [[900, 100], [158, 842]]},
        "mistakes": [
            {"text": "not bad at all", "label": "positive", "predicted": "negative", "score": 0.91},
            {"text": "a very fine failure", "label": "negative", "predicted": "positive", "score": 0.987},
        ],
        "timings": {"train": 61.0},
        "settings": {"seed": 0},
        "environment": {"torch": "2.13.0"},
        "next": ["bedplate predict model 'A fine film'"],
    }


@pytest.fixture
def record() -> dict[str, Any]:
    rows = [{"step": step, "loss": 2 / (step + 1), "learning_rate": 1e-3} for step in range(0, 50, 5)]
    rows += [
        {"step": step, "val_accuracy": 0.5 + step / 190, "val_macro_f1": 0.4 + step / 190, "val_loss": 0.7 - step / 100}
        for step in range(0, 50, 10)
    ]
    measured = {"accuracy": metric(0.84, 0.8, 0.88), "macro_f1": metric(0.8, 0.7, 0.9), "loss": metric(0.5, 0.4, 0.6)}
    tested = {
        "accuracy": metric(0.82, 0.81, 0.83, 4000),
        "macro_f1": metric(0.7, 0.6, 0.8),
        "loss": metric(0.6, 0.5, 1),
    }
    return {
        "name": "topics",
        "summary": {"parameters": 4_260_000, "steps": 50, "seconds": 95.0},
        "metrics": rows,
        "classes": ["ham", "spam", "news"],
        "validation": measured,
        "test": {"metrics": tested, "n": 4000},
        "confusion": [[70, 5, 0], [20, 3, 1], [0, 0, 1]],
        "per_class": [
            {"precision": 0.7778, "recall": 0.9333, "f1": 0.8485, "n": 75},
            {"precision": 0.375, "recall": 0.125, "f1": 0.1875, "n": 24},
            {"precision": 0.5, "recall": 1.0, "f1": 0.6667, "n": 1},
        ],
        "mistakes": [{"text": "win now", "label": "spam", "predicted": "ham", "score": 0.8}],
        "data": {"path": ["a.csv", "b.csv"], "train": 900, "val": 100, "dropped": {"missing labels": 1234}},
        "settings": {"seed": 0},
        "environment": {"torch": "2.13.0"},
        "timings": {"train": 95.0},
        "next": ["bedplate predict model 'win now'"],
    }


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def words(page: str) -> str:
    """What a reader sees, on one line."""
    body = page.partition("<body>")[2] or page
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_differences_are_told_in_plain_words(result: dict[str, Any]) -> None:
    told = words(transfer_report(result))
    for sentence in (
        "With 100 labels, the data does not show a difference between the adapted model and the same network from "
        "scratch: +3.0 points (95 % interval -0.2 to +6.0).",
        "With 100 labels, the adapted model loses 3.1 points against TF-IDF + logistic regression (95 % interval "
        "1.2 to 5.0).",
        "With all 6,530 labels, pre-training gives 7.1 points over the same network from scratch (95 % interval 4.9 to "
        "9.2).",
        "With all 6,530 labels, the same network from scratch gives 0.9 points over TF-IDF + logistic regression (95 % "
        "interval 0.2 to 1.6).",
    ):
        assert sentence in told


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.02), (-0.02, 0.0)])
def test_an_interval_that_touches_zero_shows_no_difference(result: dict[str, Any], low: float, high: float) -> None:
    result["differences"] = [
        {"labels": 100, "arm": "pretrained", "over": "scratch", "accuracy": metric((low + high) / 2, low, high)}
    ]
    assert "does not show a difference" in words(transfer_report(result))


def test_the_transfer_page_holds_every_figure(result: dict[str, Any]) -> None:
    page = transfer_report(result)
    parsed, told = Balanced(page), words(page)
    assert page.count("<svg") == 3 and not {"script", "img", "link"} & parsed.tags
    assert "Test texts 87.1 % labelled right (85.6 % to 88.4 %)" in told and "Without a model 50.0 %" in told
    assert (
        "Adapted from quickstart/model 100 61.0 % (59.5 to 62.3) 61.0, 61.4, 60.6 60.0 % (58.0 to 62.0) 12.3 s" in told
    )
    assert "the model took 158 of 1,000 texts labelled “positive” for “negative”" in told
    for fact in ("Left out: empty texts 1", "Near-duplicates of held-out texts 12", "Texts to learn from 6,530"):
        assert fact in told
    assert "bedplate predict model" in told and "This was done 3 times" in told


def test_arms_keep_their_order_and_one_may_be_missing(result: dict[str, Any]) -> None:
    result["rows"].reverse()
    names = list(result["arms"].values())
    section = words("".join(transfer_sections(result)[0][1]))
    assert [section.index(name) for name in names] == sorted(section.index(name) for name in names)
    del result["arms"]["tfidf"]
    for key in ("rows", "differences"):
        result[key] = [row for row in result[key] if "tfidf" not in (row["arm"], row.get("over"))]
    page = transfer_report(result)
    Balanced(page)
    assert "TF-IDF" not in page and page.count("<circle") == 4


def test_mistakes_stand_by_their_score(result: dict[str, Any]) -> None:
    result["mistakes"] += [{"text": f"filler {i}", "label": "a", "predicted": "b", "score": 0.5} for i in range(20)]
    told = words(transfer_report(result))
    assert told.index("a very fine failure") < told.index("not bad at all") < told.index("filler 0")
    assert "said “positive” labelled “negative” 98.7 % sure" in told and told.count("filler") == 8


def test_a_long_text_is_cut(result: dict[str, Any]) -> None:
    result["mistakes"][0]["text"] = "word " * 1000
    assert words(transfer_report(result)).count("word ") < 100


def test_of_pictures_the_page_speaks_of_pictures_and_shows_its_mistakes(result: dict[str, Any]) -> None:
    result["arms"] = result["arms"] | {"tfidf": "Linear probe of the frozen base"}
    for row in result["mistakes"]:
        row["image"] = Image.new("RGB", (8, 8))
        del row["text"]
    result["data"]["dropped"] = {}
    page = transfer_report(result, "pictures")
    told = words(page)
    assert page.count("<img") == 2 and told.index("“positive”, 99 % sure") < told.index("“negative”, 91 % sure")
    assert "give a picture its label" in told and "2,000 pictures" in told and "texts" not in told
    assert "Test pictures 87.1 % labelled right" in told


@pytest.mark.parametrize(
    "part", ["differences", "majority", "confusion", "mistakes", "timings", "settings", "environment", "next"]
)
def test_parts_of_a_transfer_are_optional(result: dict[str, Any], part: str) -> None:
    del result[part]
    Balanced(transfer_report(result))


def test_a_confusion_without_a_mistake_says_so(result: dict[str, Any]) -> None:
    result["confusion"]["matrix"] = [[1000, 0], [0, 1000]]
    assert "No text was given a wrong label." in words(transfer_report(result))


def test_transfer_sections_fit_into_the_page_of_a_run(result: dict[str, Any]) -> None:
    page = run_report({"name": "quickstart", "sections": transfer_sections(result), "next": ["bedplate info"]})
    Balanced(page)
    assert page.index("What pre-training is worth") < page.index("The data") < page.index("What to do next")


def test_the_finetune_page_holds_every_figure(record: dict[str, Any]) -> None:
    page = finetune_report(record)
    parsed, told = Balanced(page), words(page)
    assert page.count("<svg") == 5 and not {"script", "img", "link"} & parsed.tags
    assert told.index("Test texts 82.0 % labelled right (81.0 % to 83.0 %)") < told.index("Validation texts 84.0 %")
    assert "Validation 2,000 84.0 % (80.0 to 88.0) 80.0 % (70.0 to 90.0) 0.500 (0.400 to 0.600)" in told
    assert "Test 4,000 82.0 % (81.0 to 83.0)" in told and "On the test texts." in told
    assert "spam 24 37.5 % 12.5 % 18.8 %" in told
    assert "the model took 20 of 24 texts labelled “spam” for “ham”" in told
    assert "a.csv, b.csv" in told and "Left out: missing labels 1,234" in told
    assert "bits per byte" not in told and "Size 4.26M parameters" in told


def test_the_curve_of_a_finetune_run_ends_at_its_last_validation(record: dict[str, Any]) -> None:
    learning = finetune_sections(record)[0]
    assert learning[0] == "How it learned"
    assert ">71.1<" in learning[1][1] and ">61.1<" in learning[1][1]


def test_without_a_test_file_the_figures_are_those_of_validation(record: dict[str, Any]) -> None:
    del record["test"]
    told = words(finetune_report(record))
    assert "On the validation texts." in told and "82.0 %" not in told and "Test texts" not in told


@pytest.mark.parametrize(
    "part",
    ["summary", "metrics", "validation", "test", "confusion", "per_class", "mistakes", "data", "timings", "next"],
)
def test_parts_of_a_finetune_record_are_optional(record: dict[str, Any], part: str) -> None:
    del record[part]
    Balanced(finetune_report(record))
    Balanced(finetune_report({"name": "nothing yet", "classes": ["a", "b"]}))


def spoiled(tree: Any) -> Any:
    """The tree with every string of a user made hostile."""
    if isinstance(tree, dict):
        return {key: value if key in ("arm", "over") else spoiled(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [spoiled(value) for value in tree]
    return f"{tree} {HOSTILE}" if isinstance(tree, str) else tree


def test_whatever_users_wrote_is_escaped(result: dict[str, Any], record: dict[str, Any]) -> None:
    result["data"]["dropped"], record["data"]["dropped"] = {HOSTILE: 1}, {HOSTILE: 1}
    for page in (transfer_report(spoiled(copy.deepcopy(result))), finetune_report(spoiled(record))):
        Balanced(page)
        assert "<script" not in page and "&lt;script&gt;" in page
