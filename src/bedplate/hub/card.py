"""The model card, README.md: what the run record says, and nothing that it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

USE = """
```python
import bedplate

model = bedplate.load("path/to/this/folder")
print({call})
```

{elsewhere}
"""
GENERATES = """The folder loads in `transformers` as well:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```"""
FILLS = """The folder loads in `transformers` as well, as `AutoModelForMaskedLM`."""
SEQUENCES = """The folder loads in `transformers` as well, as `AutoModelForSequenceClassification`."""
SUMMARIZES = """

A summary follows a document and the cue that `tokenizer_config.json` names under `summarize`: there,
`model.generate(**tokenizer(document + cue, return_tensors="pt"), num_beams=4)` writes one as well."""
CLASSIFIES = {
    "last": SEQUENCES,
    "cls": SEQUENCES,
    "mean": """The folder loads in `transformers` as well, as `AutoModelForTokenClassification`:
the mean of its logits over the tokens of a text are the logits of the text.""",
}

# Of each task of images: the Hub's name of it, what one does with the model, and what the model is.
IMAGES = {
    "mae": (
        "image-feature-extraction",
        'model.embed("photo.jpg").shape',
        "A masked autoencoder of pictures of {}x{} pixels",
    ),
    "simclr": (
        "image-feature-extraction",
        'model.embed("photo.jpg").shape',
        "An encoder of pictures of {}x{} pixels, learnt without labels",
    ),
    "classify_images": (
        "image-classification",
        'model.predict("photo.jpg")[0]',
        "A classifier of pictures of {}x{} pixels",
    ),
    "contrast": (
        "zero-shot-image-classification",
        'model.predict("photo.jpg", labels="cat,dog,pizza")[0]',
        "A CLIP, which puts texts and pictures of {}x{} pixels into one space",
    ),
    "detect": (
        "object-detection",
        'model.predict("photo.jpg")[0]',
        "A detector of objects in pictures of {}x{} pixels",
    ),
    "answer": (
        "image-text-to-text",
        'model.ask("photo.jpg", "what is it?")[0]["text"]',
        "A reader, which writes captions of pictures of {}x{} pixels and answers questions about them",
    ),
    "image_tokens": (
        "image-to-image",
        'model.encode("photo.jpg").shape',
        "A discrete tokenizer of pictures of {}x{} pixels",
    ),
    "draw": (
        "text-to-image",
        'model.draw("a red heart", n=4, seed=0)',
        "A model that draws pictures of {}x{} pixels from texts",
    ),
}


def model_card(record: Mapping[str, Any]) -> str:
    """README.md with YAML front matter, from a run record. A section is left out where the record has nothing for it.

    Args:
        record: any of
            `name`, `description`, `license`, `language`, `base_model`, `command`: strings;
            `parameters`: a count;
            `recipe`: the resolved recipe, as plain data;
            `classes` and `pooling`: labels of a classifier, and how it reads a text; `family`: an architecture;
            `blank`: the token that a masked language model fills in;
            `images`: the task of a model of images; `image_size`: [height, width] of these; `standard`: the class of
                `transformers` that loads it, where one does;
            `chat`: whether the model answers; `summarizes`: whether it summarises;
            `limits`: a text: what the model should not be used for;
            `curve`: [(step, held-out bits per byte)], or of what `curve_of` names;
            `data`: a text, or the `meta.json` of each source (`sources`, `train` and `val` with their counts);
            `metrics`: {name: {"value", "low", "high", "n"}}, of which only the value must be there;
            `test`: {"metrics": the same, of texts that were scored once};
            `hardware`: a string, or in `environment` under that key.
    """
    recipe = record.get("recipe") or {}
    family = recipe.get("model", {}).get("preset") or (None if record.get("classes") else record.get("family"))
    front: dict[str, Any] = {
        "library_name": "bedplate",
        "pipeline_tag": _pipeline(record),
        "tags": ["bedplate", family] if family else ["bedplate"],
    }
    front |= {key: record[key] for key in ("license", "language", "base_model") if record.get(key)}
    sections = {
        "Use": _use(record, recipe),
        "Data": _data(record.get("data") or ""),
        "Evaluation": _metrics(_measured(record)),
        "Limits": record.get("limits", ""),
        "Training": _training(record, recipe),
    }
    parts = [f"---\n{_yaml(front)}\n---", f"# {record.get('name') or 'Language model'}", _summary(record, family)]
    parts += [f"## {title}\n\n{body}" for title, body in sections.items() if body]
    return "\n\n".join(parts) + "\n"


def _pipeline(record: Mapping[str, Any]) -> str:
    if images := record.get("images"):
        return IMAGES[images][0]
    if record.get("classes"):
        return "text-classification"
    if record.get("summarizes"):
        return "summarization"
    return "fill-mask" if record.get("blank") else "text-generation"


def _use(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    if images := record.get("images"):
        loads = record.get("standard")
        elsewhere = f"The folder loads in `transformers` as well, as `{loads}`." if loads else ""
        return USE.format(call=IMAGES[images][1], elsewhere=elsewhere).strip()
    if record.get("classes"):
        elsewhere = SEQUENCES if record.get("family") == "modernbert" else CLASSIFIES[record["pooling"]]
        return USE.format(call='model.predict("A text")[0]', elsewhere=elsewhere).strip()
    if blank := record.get("blank"):
        call = f"model.predict({f'The film was {blank}.'!r})[0]"
        return USE.format(call=call, elsewhere=FILLS).strip()
    if record.get("summarizes"):
        return USE.format(call='model.predict("A long text")[0]["text"]', elsewhere=GENERATES + SUMMARIZES).strip()
    prompt = (recipe.get("evaluate", {}).get("prompts") or ["The"])[0]
    call = f"model.generate({prompt!r}, max_new_tokens=64)[0]"
    if record.get("chat"):
        call = f'model.chat([{{"role": "user", "content": {prompt!r}}}])["content"]'
    return USE.format(call=call, elsewhere=GENERATES).strip()


def _summary(record: Mapping[str, Any], family: str | None) -> str:
    kind = f"A {family}-shaped language model" if family else "A language model"
    if images := record.get("images"):
        kind = IMAGES[images][2].format(*record["image_size"])
    if classes := record.get("classes"):
        shown = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
        kind = f"{kind} ({shown})" if images else f"A classifier of texts ({shown})"
    count = f" of {record['parameters']:,} parameters" if record.get("parameters") else ""
    return "\n\n".join(filter(None, (record.get("description"), f"{kind}{count}, made with bedplate.")))


def _data(data: str | Sequence[Mapping[str, Any]]) -> str:
    return data if isinstance(data, str) else "\n".join(f"- {_source(source)}" for source in data)


def _source(meta: Mapping[str, Any]) -> str:
    """What one source gave to each split: documents and tokens of text, or examples."""
    parts = []
    for split in ("train", "val", "test"):
        size = meta.get(split)
        if isinstance(size, Mapping):
            parts.append(f"{split} {size['documents']:,} documents, {size['tokens']:,} tokens")
        elif size:
            parts.append(f"{split} {size:,} {'pictures' if meta.get('pictures') else 'examples'}")
    if unlabelled := meta.get("unlabelled"):
        parts.append(f"{unlabelled:,} texts without labels, on which the teacher gave its word")
    if near := meta.get("near_duplicates"):
        parts.append(f"{near:,} near-duplicates of scored texts removed from the training")
    return "; ".join(parts)


def _measured(record: Mapping[str, Any]) -> dict[str, Any]:
    """Held-out metrics, and those of the test where there was one."""
    test = record.get("test", {}).get("metrics", {})
    return {**(record.get("metrics") or {}), **{f"test {name}": metric for name, metric in test.items()}}


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    rows = ["| metric | value | interval | n |", "|---|---|---|---|"]
    for name, metric in metrics.items():
        interval = f"{metric['low']:.4g} to {metric['high']:.4g}" if "low" in metric and "high" in metric else ""
        count = f"{metric['n']:,}" if "n" in metric else ""
        rows.append(f"| {name} | {metric['value']:.4g} | {interval} | {count} |")
    return "\n".join(rows) if metrics else ""


def _training(record: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    hardware = record.get("hardware") or (record.get("environment") or {}).get("hardware")
    parts = [
        f"Hardware: {hardware}." if hardware else "",
        f"```bash\n{record['command']}\n```" if record.get("command") else "",
        _curve(record.get("curve") or (), record.get("curve_of", "held-out bits per byte")),
        f"The resolved recipe:\n\n```yaml\n{_yaml(recipe)}\n```" if recipe else "",
    ]
    return "\n\n".join(filter(None, parts))


def _curve(points: Sequence[tuple[int, float]], what: str) -> str:
    if not points:
        return ""
    steps, values = (" | ".join(row) for row in ([f"{x:,}" for x, _ in points], [f"{y:.3f}" for _, y in points]))
    return f"| step | {steps} |\n|{'---|' * (len(points) + 1)}\n| {what} | {values} |"


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).rstrip()
