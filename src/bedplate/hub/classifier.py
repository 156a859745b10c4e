"""Config files of text classifiers: what they say beside their text model, in the form of `transformers`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedplate.errors import InputError
from bedplate.hub.config import FAMILIES
from bedplate.models.classifier import Pooling
from bedplate.models.gpt import GPTConfig

SEQUENCES, TOKENS = "ForSequenceClassification", "ForTokenClassification"
POOLING = "classifier_pooling"  # ModernBERT's name for it
SINGLE_LABEL = "single_label_classification"


@dataclass(frozen=True, slots=True)
class ClassifierHead:
    """What a config file says of a classifier beside its text model: labels in the order of scores, and pooling."""

    labels: list[str]
    pooling: Pooling


def classifier_from_hf(values: Mapping[str, Any], where: str = "config.json") -> ClassifierHead | None:
    """The head of a text classifier; None for a model that is none.

    Raises:
        InputError: see `labels_from_hf`; or the classifier gives a label to each token.
    """
    architectures = values.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        raise InputError(f"{where}: architectures={architectures!r} is no list of names; mend it")
    architectures = [str(name) for name in architectures]
    if not any(name.endswith((SEQUENCES, TOKENS)) for name in architectures):
        return None
    form = TOKENS if any(name.endswith(TOKENS) for name in architectures) else SEQUENCES
    pooling = _pooling(values, form, where)
    return ClassifierHead(labels_from_hf(values, where), pooling)


def labels_from_hf(values: Mapping[str, Any], where: str = "config.json") -> list[str]:
    """The labels of any classifier's config file, in the order of its scores.

    Raises:
        InputError: what `labels_of` raises, less than two labels, or several can be right at one time.
    """
    if (kind := values.get("problem_type") or SINGLE_LABEL) != SINGLE_LABEL:
        raise InputError(f"{where}: problem_type={kind!r} is not supported; supported: {SINGLE_LABEL}")
    labels = labels_of(values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}, where)  # `transformers`' default
    if len(labels) < 2:  # which `transformers` takes for a regression
        raise InputError(f"{where}: id2label has {len(labels)} label; a classifier has two or more")
    return labels


def labels_of(names: Any, where: str = "config.json") -> list[str]:
    """The labels of an `id2label`, in the order of the scores.

    One that is there again gets its number behind it: ImageNet's list has two cranes, "crane" and "crane (517)".

    Raises:
        InputError: it does not number its labels from 0, or has such names itself.
    """
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        raise InputError(f"{where}: id2label must number the labels from 0, got {names!r}")
    given = [str(names.get(str(i), names.get(i))) for i in range(len(names))]
    first = {label: i for i, label in reversed(list(enumerate(given)))}
    labels = [label if first[label] == i else f"{label} ({i})" for i, label in enumerate(given)]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"{where}: id2label has the label {twice!r} twice; give each a name of its own")
    return labels


def classifier_to_hf(config: GPTConfig, labels: Sequence[str], pooling: Pooling, pad_token_id: int) -> dict[str, Any]:
    """What turns the config file of a language model into that of its classifier."""
    form, base = _form(config.family, pooling), FAMILIES[config.family].architecture
    values: dict[str, Any] = {
        "architectures": [re.sub("ForCausalLM|LMHeadModel|ForMaskedLM", form, base)],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "pad_token_id": pad_token_id,
    }
    if form == SEQUENCES:
        values["problem_type"] = SINGLE_LABEL
    return values | ({} if pooling == "last" else {POOLING: pooling})


def _pooling(values: Mapping[str, Any], form: str, where: str) -> Pooling:
    family, named = values.get("model_type"), values.get(POOLING)
    if form == TOKENS:
        if named != "mean" or _form(family, "mean") != TOKENS:
            raise InputError(f"{where}: the model labels tokens, not texts, which is not supported")
        return "mean"
    if family != "modernbert":
        return "cls" if family == "bert" else "last"
    if named not in ("cls", "mean", None):
        raise InputError(f"{where}: {POOLING}={named!r} is not supported; supported: cls, mean")
    return "mean" if named == "mean" else "cls"


def _form(family: Any, pooling: Pooling) -> str:
    """What the `transformers` class is called in which the classifier is written."""
    return TOKENS if pooling == "mean" and family != "modernbert" else SEQUENCES
