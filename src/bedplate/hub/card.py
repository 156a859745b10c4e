"""The model card, README.md: what the run record says, and nothing that it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

USE = """
```python
import bedplate

model = bedplate.load("path/to/this/folder")
print(model.generate({prompt!r}, max_new_tokens=64)[0])
```

The folder loads in `transformers` as well:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


def model_card(record: Mapping[str, Any]) -> str:
    """README.md with YAML front matter, from a run record. A section is left out where the record has nothing for it.

    Args:
        record: any of
            `name`, `description`, `license`, `language`, `base_model`, `command`: strings;
            `parameters`: a count;
            `recipe`: the resolved recipe, as plain data;
            `data`: a text, or the `meta.json` of each source (`sources`, `train` and `val` with their counts);
            `metrics`: {name: {"value", "low", "high", "n"}}, of which only the value must be there;
            `hardware`: a string, or in `environment` under that key.
    """
    recipe = record.get("recipe") or {}
    family = recipe.get("model", {}).get("preset")
    front: dict[str, Any] = {
        "library_name": "bedplate",
        "pipeline_tag": "text-generation",
        "tags": ["bedplate", family] if family else ["bedplate"],
    }
    front |= {key: record[key] for key in ("license", "language", "base_model") if record.get(key)}
    prompts = recipe.get("evaluate", {}).get("prompts") or ["The"]
    sections = {
        "Use": USE.format(prompt=prompts[0]).strip(),
        "Data": _data(record.get("data") or ""),
        "Evaluation": _metrics(record.get("metrics") or {}),
        "Training": _training(record, recipe),
    }
    parts = [f"---\n{_yaml(front)}\n---", f"# {record.get('name') or 'Language model'}", _summary(record, family)]
    parts += [f"## {title}\n\n{body}" for title, body in sections.items() if body]
    return "\n\n".join(parts) + "\n"


def _summary(record: Mapping[str, Any], family: str | None) -> str:
    kind = f"A {family}-shaped language model" if family else "A language model"
    count = f" of {record['parameters']:,} parameters" if record.get("parameters") else ""
    return "\n\n".join(filter(None, (record.get("description"), f"{kind}{count}, made with bedplate.")))


def _data(data: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(data, str):
        return data
    lines = []
    for meta in data:
        splits = [
            f"{split} {meta[split]['documents']:,} documents, {meta[split]['tokens']:,} tokens"
            for split in ("train", "val")
            if meta.get(split)
        ]
        lines.append("- " + "; ".join(splits))
    return "\n".join(lines)


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
        f"The resolved recipe:\n\n```yaml\n{_yaml(recipe)}\n```" if recipe else "",
    ]
    return "\n\n".join(filter(None, parts))


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).rstrip()
