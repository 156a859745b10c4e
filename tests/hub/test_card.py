"""The card says what the record says, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import yaml

from bedplate.hub.card import model_card

RECORD: dict[str, Any] = {
    "name": "reviews",
    "license": "apache-2.0",
    "parameters": 1_234_567,
    "recipe": {"seed": 0, "model": {"preset": "qwen3"}, "evaluate": {"prompts": ['Say "hi"']}},
    "data": [
        {
            "sources": {"path": "reviews/*.txt"},
            "train": {"documents": 9_000, "tokens": 2_000_000},
            "val": {"documents": 90, "tokens": 20_000},
        }
    ],
    "metrics": {"bits_per_byte": {"value": 1.23456, "low": 1.2, "high": 1.3, "n": 4096}, "loss": {"value": 2.5}},
    "environment": {"hardware": "cpu, 2 threads, fp32"},
    "command": "bedplate pretrain recipes/gpt-mini.yaml",
}


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_full_record() -> None:
    card = model_card(RECORD)
    assert front_matter(card) == {
        "library_name": "bedplate",
        "pipeline_tag": "text-generation",
        "tags": ["bedplate", "qwen3"],
        "license": "apache-2.0",
    }
    for part in (
        "# reviews\n",
        "A qwen3-shaped language model of 1,234,567 parameters, made with bedplate.",
        "- train 9,000 documents, 2,000,000 tokens; val 90 documents, 20,000 tokens",
        "| bits_per_byte | 1.235 | 1.2 to 1.3 | 4,096 |",
        "| loss | 2.5 |  |  |",
        "Hardware: cpu, 2 threads, fp32.",
        "bedplate pretrain recipes/gpt-mini.yaml",
    ):
        assert part in card
    recipe = re.search(r"```yaml\n(.*?)```", card, re.S)
    assert recipe and yaml.safe_load(recipe[1]) == RECORD["recipe"]


def test_an_empty_record_invents_nothing() -> None:
    card = model_card({})
    assert front_matter(card)["tags"] == ["bedplate"]
    assert re.findall(r"^#+ .*", card, re.M) == ["# Language model", "## Use"]
    assert not re.search(r"None|\{|\d", card.replace("max_new_tokens=64)[0]", ""))


def test_the_code_is_python() -> None:
    for record in ({}, RECORD):
        for code in re.findall(r"```python\n(.*?)```", model_card(record), re.S):
            compile(code, "card", "exec")
