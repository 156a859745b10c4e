"""The page: self-contained, escaped, and whole whatever part of the record is missing."""

from html.parser import HTMLParser

import pytest

from bedplate.report.page import (
    _training_bits_per_byte,
    code,
    duration,
    figures,
    flatten,
    percent,
    quotes,
    render,
    run_report,
    samples,
    table,
    text,
)

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too'"
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        assert not {"src", "href", "onload", "onclick"} & {name for name, _ in attrs}

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture
def record() -> dict:
    metrics = [
        {"step": s, "bits_per_byte": 8 / (s + 1), "tokens_per_second": 1e4, "learning_rate": 1e-3} for s in range(9)
    ]
    metrics += [{"step": s, "val_bits_per_byte": 8 / (s + 1)} for s in (0, 4, 8)]
    return {
        "name": f"run {HOSTILE}",
        "summary": {
            "val_bits_per_byte": 0.888,
            "parameters": 13_770_000,
            "seconds": 400.0,
            "mfu": 0.41,
            "waiting": 0.234,
            "perplexity": 7,
        },
        "metrics": metrics,
        "samples": [{"step": s, "prompt": "This film", "text": f"This film is {HOSTILE}"} for s in range(0, 300, 10)],
        "settings": {"train": {"steps": 9, "betas": [0.9, 0.95]}, "note": HOSTILE},
        "environment": {"torch": "2.13.0"},
        "timings": {"train": 12.0, "export": 0.1},
        "next": ["bedplate generate model 'This film'"],
    }


def test_run_report_is_whole_and_safe(record: dict) -> None:
    page = run_report(record)
    parser = parse(page)
    assert not {"script", "link", "img", "iframe", "object"} & parser.tags
    assert "svg" in parser.tags and page.count("<svg") == 4
    for expected in (
        "0.888",
        "13.8M",
        "6 min 40 s",
        percent(0.41),
        percent(0.234),
        "Waiting for data",
        "perplexity",
        "train.betas",
        "0.9, 0.95",
        "bedplate generate",
    ):
        assert expected in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("part", ["summary", "metrics", "samples", "settings", "environment", "timings", "next"])
def test_every_part_is_optional(record: dict, part: str) -> None:
    del record[part]
    parse(run_report(record))
    parse(run_report({"name": "nothing yet"}))


def test_long_runs_show_the_first_and_the_last_samples(record: dict) -> None:
    page = run_report(record)
    assert page.count('class="sample"') == 8 and "step 0<" in page and "step 290<" in page


@pytest.mark.parametrize(
    "block",
    [
        text(HOSTILE),
        table([(HOSTILE, HOSTILE)], head=[HOSTILE, "b"]),
        figures([(HOSTILE, HOSTILE, HOSTILE)]),
        samples([(0, HOSTILE, HOSTILE)]),
        quotes([(HOSTILE, HOSTILE)]),
        code([HOSTILE]),
        render(HOSTILE, [(HOSTILE, [])], footer=HOSTILE),
    ],
)
def test_every_block_escapes(block: str) -> None:
    assert "<script" not in block and "&lt;script&gt;" in block
    parse(block)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(8.24, "8.2 s"), (400, "6 min 40 s"), (59.99, "1 min 00 s"), (11100, "3 h 05 min")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": None}) == [("a.b", "1"), ("a.c", "{}"), ("d", "None")]


def test_training_loss_is_drawn_in_bits_per_byte() -> None:
    rows = [{"step": 1, "loss": 6.0}, {"step": 2, "loss": 4.0}, {"step": 2, "val_loss": 5.0, "val_bits_per_byte": 2.5}]
    assert _training_bits_per_byte(rows) == [(1, 3.0), (2, 2.0)]
    assert _training_bits_per_byte(rows[:2]) == []


def test_an_interval_stands_beside_its_figure() -> None:
    summary = {"val_bits_per_byte": 1.83, "val_bits_per_byte_low": 1.81, "val_bits_per_byte_high": 1.85}
    page = run_report({"name": "run", "summary": summary})
    assert "bits per byte (1.81 to 1.85)" in page and "Other results" not in page


def test_shares_are_shown_as_percent_with_their_interval() -> None:
    summary = {"val_accuracy": 0.8712, "val_accuracy_low": 0.856, "val_accuracy_high": 0.884}
    page = run_report({"name": "run", "summary": summary})
    assert f">{percent(0.871)}<" in page and f"({percent(0.856)} to {percent(0.884)})" in page
    assert percent(0.8712) == "87.1\N{NO-BREAK SPACE}%"


def test_more_sections_stand_before_what_to_do_next(record: dict) -> None:
    page = run_report({**record, "sections": [("Transfer", [text("worth it")]), ("Mistakes", [text("few")])]})
    parse(page)
    places = [page.index(f"<h2>{heading}</h2>") for heading in ("Transfer", "Mistakes", "What to do next")]
    assert page.index("What it wrote along the way") < places[0] and places == sorted(places) and "worth it" in page
