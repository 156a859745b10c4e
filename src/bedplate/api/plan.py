"""What a recipe will do, worked out without touching its data: the network, the tokens, the memory."""

from __future__ import annotations

from typing import Any

import torch

from bedplate.data.tokenizer import load_tokenizer, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.config import config_to_hf
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.nn.rotary import RopeConfig
from bedplate.recipe import Recipe
from bedplate.tasks.language import Language
from bedplate.train.hardware import choose_hardware


def gpt_config(recipe: Recipe, vocab_size: int) -> GPTConfig:
    """The network that a recipe describes."""
    values = recipe.model.model_dump(exclude={"preset", "rope_theta", "max_position_embeddings"})
    if recipe.model.preset != "gpt2":
        values["rope"] = RopeConfig(rope_theta=recipe.model.rope_theta)
    return GPTConfig.from_preset(
        recipe.model.preset,
        vocab_size=vocab_size,
        max_position_embeddings=recipe.model.max_position_embeddings or recipe.train.sequence_length,
        **values,
    )


def check_metric(recipe: Recipe) -> None:
    """Raise InputError if the task does not measure `evaluate.metric`."""
    if recipe.evaluate.metric not in Language.metrics:
        measured = ", ".join(Language.metrics)
        raise InputError(f"evaluate.metric={recipe.evaluate.metric!r} is not measured; choose one of {measured}")


def plan(recipe: Recipe) -> dict[str, Any]:
    """{"recipe", "hardware", "parameters", "tokens_per_step", "tokens", "flops", "memory"}; memory in bytes by part.

    A tokenizer that is still to be trained counts with `tokenizer.vocab_size`; little text may give fewer entries.
    """
    hardware, given = choose_hardware(recipe.train), recipe.tokenizer.path
    vocab_size = recipe.tokenizer.vocab_size if given is None else vocabulary_size(load_tokenizer(given))
    check_metric(recipe)
    config = gpt_config(recipe, vocab_size)
    config_to_hf(config)  # refuses what no model directory could hold
    with torch.device("meta"):
        module = GPT(config)
    train = recipe.train
    parameters = sum(p.numel() for p in module.parameters())
    in_blocks = sum(p.numel() for p in module.trunk.blocks.parameters() if p.dim() == 2)
    moments = 2 * parameters - (in_blocks if recipe.optimizer.name == "muon" else 0)
    tokens_per_step = train.batch_size * train.sequence_length
    memory = {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 4 * moments,
        "ema": 4 * parameters if train.ema is not None else 0,
        "activations": _activation_bytes(recipe, module.config),
    }
    return {
        "recipe": recipe.model_dump(mode="json"),
        "hardware": str(hardware),
        "parameters": parameters,
        "tokens_per_step": tokens_per_step,
        "tokens": tokens_per_step * train.steps,
        "flops": module.flops_per_token(train.sequence_length) * tokens_per_step * train.steps,
        "memory": memory | {"total": sum(memory.values())},
    }


def _activation_bytes(recipe: Recipe, config: GPTConfig) -> int:
    """What the backward pass keeps of one micro-batch, an estimate: per token and layer, in values of 4 bytes.

    Norms keep their input (2 D and, with QK-norm, the projected queries and keys), attention keeps q, k, v and its
    output, the MLP its inner widths (3 where gated), residual additions their sums.
    """
    c, train = config.trunk, recipe.train
    query, key = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = 2 * query + 2 * key + (query + key if c.qk_norm else 0)
    layer = 4 * c.hidden_size + attention + (4 if c.gated else 2) * c.intermediate_size
    tokens = (train.micro_batch_size or train.batch_size) * train.sequence_length
    layers = c.num_hidden_layers
    kept = layers * c.hidden_size + layer if train.activation_checkpointing else layers * layer
    return 4 * tokens * (kept + 4 * c.hidden_size)
