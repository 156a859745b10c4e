"""One self-contained HTML page: no script, no font and no image from anywhere else, so that it can be mailed and kept.

`render` makes a page of headed sections; a section is a list of blocks, the strings that `text`, `table`, `figures`,
`chart`, `samples`, `quotes` and `code` return. All of them escape what they are given. `run_report` is the page of a
whole run.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from bedplate.report.plot import WIDTH, bar_chart, compact, line_chart

SHOWN_SAMPLES = 8  # steps whose samples are printed: the first, the last and some between

STYLE = """
:root { color-scheme: light dark; --page: #fbfbf9; --card: #ffffff; --ink: #1b1f24; --muted: #5c6570; --line: #e2e4e0;
  --series-1: #0072b2; --series-2: #d98a3d; --series-3: #009e73; --series-4: #c0639a;
  --series-5: #a67c00; --series-6: #666 }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1b1f25; --ink: #e6e8ea; --muted: #98a2ad;
  --line: #2d333b; --series-1: #5cb3ec; --series-2: #e0a060; --series-3: #3ecfa0; --series-4: #e59cc6;
  --series-5: #e0bb4d; --series-6: #aaa } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 860px; padding: 48px 24px 72px; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.015em; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 44px 0 12px }
p { margin: 0 0 12px; max-width: 68ch }
.muted, figcaption, th, dt { color: var(--muted) }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 28px 0 0 }
.figures div { flex: 1 1 170px; padding: 14px 16px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px }
.figures dt, .figures dd { font-size: .82rem; color: var(--muted); margin: 0 }
.figures b { display: block; font-size: 1.65rem; font-weight: 650; line-height: 1.3; letter-spacing: -.02em;
  color: var(--ink); white-space: nowrap; font-variant-numeric: tabular-nums }
.figures div:first-child b { color: var(--series-1) }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 0 16px }
.pair svg { max-width: 420px; margin: 0 auto }
figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px 12px;
  margin: 0 0 16px }
figure svg { display: block; width: 100%; height: auto; overflow: visible }
.pictures { display: grid; gap: 12px; margin: 0 0 6px }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px }
.pictures .pixels { image-rendering: pixelated }
.pictures span { display: block; font-size: .8rem; line-height: 1.35; color: var(--muted); padding-top: 4px;
  white-space: pre-line; overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: 0 0 16px }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere }
th { font-weight: 500 } tbody th { width: 38%; font-weight: 400 }
thead + tbody th { width: auto; min-width: 90px } thead th, thead + tbody td { white-space: nowrap }
.sample { display: grid; grid-template-columns: 92px 1fr; gap: 16px; padding: 12px 0;
  border-top: 1px solid var(--line) }
.sample > span { font-variant-numeric: tabular-nums; font-size: .85rem; color: var(--muted); padding-top: 2px }
.sample p { font-family: Charter, Georgia, "Times New Roman", serif; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: 0 0 8px }
.quote { grid-template-columns: 190px 1fr } .quote > span { white-space: pre-line; overflow-wrap: anywhere }
.sample b { color: var(--series-1); font-weight: 600 }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  overflow-x: auto; font: .85rem/1.7 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 0 0 16px }
footer { margin-top: 56px; padding-top: 12px; border-top: 1px solid var(--line);
  font-size: .82rem; color: var(--muted) }
@media (max-width: 560px) { .sample, .quote { grid-template-columns: 1fr; gap: 0 } body { padding-top: 28px } }
@media print { body { max-width: none; padding: 0; background: none } .figures div, figure, pre { break-inside: avoid }
  h2 { break-after: avoid } pre { white-space: pre-wrap } }
"""

# What a run's summary may hold, in the order of the page: key -> (label, unit).
HEADLINES = {
    "val_bits_per_byte": ("Held-out text", "bits per byte"),
    "val_masked_accuracy": ("Hidden tokens", "of held-out text foretold"),
    "test_accuracy": ("Test texts", "labelled right"),
    "val_accuracy": ("Validation texts", "labelled right"),
    "majority": ("Without a model", "right by always saying the most frequent class"),
    "parameters": ("Size", "parameters"),
    "tokens": ("Read", "tokens"),
    "steps": ("Learned in", "steps"),
    "seconds": ("Training took", "of computing"),
    "tokens_per_second": ("Speed", "tokens/s"),
    "images_per_second": ("Speed", "images/s"),
    "mfu": ("Hardware used", "of its peak"),
    "waiting": ("Waiting for data", "of the time of training"),
}
SHARES = ("test_accuracy", "val_accuracy", "majority", "mfu", "waiting")  # from 0 to 1, shown as percent


def duration(seconds: float) -> str:
    """`8.2 s`, `6 min 40 s`, `3 h 05 min`."""
    if seconds < 59.95:  # what rounds to less than 60.0 s
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(share: float) -> str:
    """`87.1 %`, with a space that no line breaks at."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def text(*paragraphs: str, muted: bool = False) -> str:
    """Paragraphs of plain text."""
    attribute = ' class="muted"' if muted else ""
    return "".join(f"<p{attribute}>{escape(paragraph)}</p>" for paragraph in paragraphs)


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A table whose first column names the rows."""
    top = f"<thead><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>{"".join(f"<td>{escape(str(cell))}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def figures(items: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: (label, value, unit), the first of them the most important."""
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd><b>{escape(value)}</b>{escape(unit)}</dd></div>"
        for label, value, unit in items
    )
    return f'<dl class="figures">{cells}</dl>'


def chart(svg: str, caption: str = "") -> str:
    """An SVG of `bedplate.report.plot` (markup, taken as it is) with an optional line below it."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{below}</figure>"


def samples(items: Iterable[tuple[int, str, str]]) -> str:
    """Generated texts as (step, prompt, continuation), the prompt set off from what the model wrote."""
    by_step: dict[int, list[str]] = {}
    for step, prompt, continuation in items:
        continuation = re.sub(r"\n\s*\n", "\n", continuation)  # an early model writes pages of empty lines
        by_step.setdefault(step, []).append(f"<p><b>{escape(prompt)}</b>{escape(continuation)}</p>")
    return "".join(
        f'<div class="sample"><span>step {step:,}</span><div>{"".join(paragraphs)}</div></div>'
        for step, paragraphs in by_step.items()
    )


def quotes(items: Iterable[tuple[str, str]]) -> str:
    """Texts as (note, text), each beside its note, which may have several lines."""
    return "".join(
        f'<div class="sample quote"><span>{escape(note)}</span><div><p>{escape(quoted)}</p></div></div>'
        for note, quoted in items
    )


def code(lines: Iterable[str]) -> str:
    """Commands or code, one a line."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"


def render(title: str, sections: Iterable[tuple[str, Sequence[str]]], *, footer: str = "Written by bedplate.") -> str:
    """The whole page. A section is (heading, blocks); an empty heading leaves the heading out."""
    body = "\n".join(
        f"<section>{f'<h2>{escape(heading)}</h2>' if heading else ''}{''.join(blocks)}</section>"
        for heading, blocks in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The browser itself enforces that the page is self-contained, whatever text a model wrote into it.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n<footer>{escape(footer)}</footer></body></html>\n"
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested dict as (dotted key, value) rows, in its order."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{key}", shown))
    return rows


def by_step(metrics: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """The points (step, value) of a line, from those rows of metrics.jsonl that have the key."""
    return [(row["step"], row[key]) for row in metrics if row.get(key) is not None]


def _headlines(summary: Mapping[str, Any], shares: Mapping[str, tuple[str, str]]) -> str:
    items = []
    for key, (label, unit) in {**shares, **HEADLINES, **shares}.items():
        if (value := summary.get(key)) is None:
            continue
        show = duration if key == "seconds" else percent if key in {*SHARES, *shares} else compact
        if f"{key}_low" in summary:
            unit = f"{unit} ({show(summary[f'{key}_low'])} to {show(summary[f'{key}_high'])})"
        items.append((label, show(value), unit))
    return figures(items)


def _training_bits_per_byte(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """The training loss (nats a token) at the bits a byte that the last held-out text had for its own loss."""
    both = [row for row in metrics if row.get("val_loss") and row.get("val_bits_per_byte")]
    if not both:
        return []
    factor = both[-1]["val_bits_per_byte"] / both[-1]["val_loss"]
    return [(step, factor * loss) for step, loss in by_step(metrics, "loss")]


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    training = by_step(metrics, "bits_per_byte") or _training_bits_per_byte(metrics)
    quality = {"held-out": by_step(metrics, "val_bits_per_byte"), "training": training}
    y_label = "bits per byte, lower is better"
    if not quality["held-out"]:  # what fills blanks gives a text no probability
        quality = {"held-out": by_step(metrics, "val_loss"), "training": by_step(metrics, "loss")}
        y_label = "nats a token, lower is better"
    learning = line_chart(quality, title="Learning", x_label="step", y_label=y_label, y_log=True)
    pair = [
        chart(line_chart({title: points}, title=title, x_label="step", y_label=y_label, width=WIDTH / 2))
        for key, title, y_label in (
            ("tokens_per_second", "Speed", "tokens per second"),
            ("images_per_second", "Speed", "images per second"),
            ("learning_rate", "Learning rate", "as scheduled"),
        )
        if (points := by_step(metrics, key))
    ]
    return [chart(learning), f'<div class="pair">{"".join(pair)}</div>']


def _shown_samples(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str]]:
    """The samples of at most `SHOWN_SAMPLES` steps, evenly spread, the first and the last among them."""
    steps = sorted({row["step"] for row in rows})
    count = min(SHOWN_SAMPLES, len(steps))
    kept = {steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)}
    return [(row["step"], row["prompt"], row["text"]) for row in rows if row["step"] in kept]


def run_report(record: Mapping[str, Any]) -> str:
    """The page of a training run.

    `record` holds "name" and, each optional: "summary" (the keys of `HEADLINES`, with `_low` and `_high` for an
    interval; any others become a table), "headlines" (more or other names of shares among these, {key: (label, unit)},
    which come first), "metrics" and "samples" (the rows of metrics.jsonl and samples.jsonl),
    "sections" (more of what `render` takes, placed before the commands), "timings" ({part: seconds}), "settings" and
    "environment" (nested dicts), and "next" (commands). Training's bits per byte, where no row has them, follow from
    the loss and the bytes per token of the held-out text.
    """
    summary, metrics, written = record.get("summary", {}), record.get("metrics", []), record.get("samples", [])
    shares = record.get("headlines", {})
    sections: list[tuple[str, Sequence[str]]] = [("", [_headlines(summary, shares)])]
    if metrics:
        explained = (
            "Bits per byte is how many bits the model needs, on average, to say which byte of the text comes next. A "
            "model that knows nothing needs 8. Held-out text is text that the model was never trained on."
        )
        sections.append(("How it learned", [text(explained, muted=True), *_curves(metrics)]))
    if written:
        sections.append(("What it wrote along the way", [samples(_shown_samples(written))]))
    sections += record.get("sections", [])
    if record.get("next"):
        sections.append(("What to do next", [code(record["next"])]))
    if record.get("timings"):
        sections.append(("Where the time went", [chart(bar_chart(record["timings"], title="Time", unit="s"))]))
    shown = {f"{key}{end}" for key in (*HEADLINES, *shares) for end in ("", "_low", "_high")}
    others = {key: value for key, value in summary.items() if key not in shown}
    for heading, tree in (
        ("Other results", others),
        ("Settings", record.get("settings")),
        ("Environment", record.get("environment")),
    ):
        if tree:
            sections.append((heading, [table(flatten(tree))]))
    return render(record["name"], sections)
