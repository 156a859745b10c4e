"""The settings with which a recipe fits into memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from bedplate.errors import InputError
from bedplate.models.bert import LanguageModel
from bedplate.recipe import Recipe, read_recipe
from bedplate.train.estimate import Layout, memory

NODE = 8  # GPUs of a machine, which tensor parallelism should not leave


def first_fit(
    module: LanguageModel, recipe: Recipe, gpus: int, dtype: torch.dtype, usable: float, *, on_gpu: bool
) -> list[str]:
    """The first settings that fit, as overrides of what they change; [] if none does.

    Those that cost least speed go first: smaller micro-batches, then more shards, then computing activations again,
    then splitting matrices within a machine.
    """
    before = _settings(recipe)
    for settings in _candidates(recipe, gpus):
        try:
            changed = read_recipe(recipe, [f"{key}={_yaml(value)}" for key, value in settings.items()])
            layout = Layout.of(changed, module.config.trunk, gpus)
        except InputError:  # heads, widths or rows that so many ranks cannot share
            continue
        if memory(module, changed, layout, dtype, on_gpu=on_gpu)["total"] <= usable:
            return [f"{key}={_yaml(value)}" for key, value in settings.items() if value != before[key]]
    return []


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        "parallel.tensor": recipe.parallel.tensor,
        "train.activation_checkpointing": recipe.train.activation_checkpointing,
        "parallel.shard": recipe.parallel.shard,
        "train.micro_batch_size": recipe.train.micro_batch_size,
        "train.compile": recipe.train.compile,
    }


def _candidates(recipe: Recipe, gpus: int) -> Iterator[dict[str, Any]]:
    """Settings that save no less than the recipe's, in the order of `first_fit`: the last key changes fastest."""
    now = _settings(recipe)
    tensors = [n for n in _divisors(gpus) if now["parallel.tensor"] <= n <= NODE]
    checkpointing = [False, True][now["train.activation_checkpointing"] :]
    for tensor, again in itertools.product(tensors, checkpointing):
        rows, left_over = divmod(recipe.train.batch_size * tensor, gpus)
        if left_over:
            continue
        most = now["train.micro_batch_size"] or rows
        for shard in (n for n in _divisors(gpus // tensor) if n >= now["parallel.shard"]):
            for micro in reversed([n for n in _divisors(rows) if n <= most]):
                compiled = now["train.compile"] and tensor == 1  # the two exclude each other
                yield dict(zip(now, (tensor, again, shard, micro, compiled), strict=True))


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
