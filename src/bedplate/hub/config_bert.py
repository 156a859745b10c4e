"""`config.json` of BERT and ModernBERT, to and from `GPTConfig`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from bedplate.hub.config_file import (
    ACTIVATIONS,
    Activation,
    File,
    Off,
    On,
    Positive,
    Rate,
    RopeFile,
    Share,
    activation_name,
    rope_values,
    supported,
)
from bedplate.models.gpt import GPTConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.nn.rotary import RopeConfig


class _EncoderFile(File):
    """What the two have in common; each token sees all of its text, whatever `is_causal` says."""

    hidden_size: Positive = 768
    num_attention_heads: Positive = 12
    tie_word_embeddings: bool = True

    def sizes(self, num_hidden_layers: int, intermediate_size: int) -> dict[str, Any]:
        d, heads = self.hidden_size, self.num_attention_heads
        if d % heads:
            raise ValueError(f"hidden_size={d} is not a multiple of num_attention_heads={heads}")
        return {
            "hidden_size": d,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": d // heads,
            "intermediate_size": intermediate_size,
        }

    @staticmethod
    def size_values(config: GPTConfig) -> dict[str, Any]:
        c = config.trunk
        return {
            "hidden_size": c.hidden_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "intermediate_size": c.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
        }


class BertFile(_EncoderFile):
    architecture = "BertForMaskedLM"

    vocab_size: Positive = 30522
    num_hidden_layers: Positive = 12
    intermediate_size: Positive = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    max_position_embeddings: Positive = 512
    type_vocab_size: Positive = 2
    layer_norm_eps: Rate = 1e-12
    position_embedding_type: Annotated[str | None, supported("absolute", None)] = "absolute"
    is_decoder: Off = False
    add_cross_attention: Off = False

    def config(self) -> GPTConfig:
        trunk = TrunkConfig(
            **PRESETS["bert"]
            | self.sizes(self.num_hidden_layers, self.intermediate_size)
            | {
                "norm_eps": self.layer_norm_eps,
                "activation": ACTIVATIONS[self.hidden_act],
                # The trunk has one dropout. Where the file has two, the larger: they act in training only.
                "dropout": max(self.hidden_dropout_prob, self.attention_probs_dropout_prob),
            }
        )
        context, tied = self.max_position_embeddings, self.tie_word_embeddings
        return GPTConfig("bert", self.vocab_size, context, tied, trunk, False, self.type_vocab_size, True)

    @staticmethod
    def values(config: GPTConfig) -> dict[str, Any]:
        c = config.trunk
        return {
            **_EncoderFile.size_values(config),
            "hidden_act": activation_name(c.activation),
            "hidden_dropout_prob": c.dropout,
            "attention_probs_dropout_prob": c.dropout,
            "type_vocab_size": config.type_vocab_size,
            "layer_norm_eps": c.norm_eps,
        }


class ModernBertFile(_EncoderFile):
    architecture = "ModernBertForMaskedLM"

    vocab_size: Positive = 50368
    num_hidden_layers: Positive = 22
    intermediate_size: Positive = 1152
    hidden_activation: Activation = "gelu"
    max_position_embeddings: Positive = 8192
    norm_eps: Rate = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    attention_dropout: Share = 0.0
    embedding_dropout: Share = 0.0
    mlp_bias: bool = False
    mlp_dropout: Share = 0.0
    decoder_bias: On = True
    classifier_bias: Off = False
    classifier_activation: Activation = "gelu"
    local_attention: Positive = 128
    global_attn_every_n_layers: Positive = 3
    layer_types: list[Annotated[str, supported("full_attention", "sliding_attention")]] | None = None
    global_rope: RopeFile = Field(validation_alias="full_attention")
    local_rope: RopeFile = Field(validation_alias="sliding_attention")

    @model_validator(mode="before")
    @classmethod
    def _gather_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Bring the old spelling (`global_rope_theta` and `local_rope_theta`) into the form of the new."""
        given, scaling = (_mapping(values, key) for key in ("rope_parameters", "rope_scaling"))
        theta = values.get("global_rope_theta", 160_000.0)
        thetas = {"full_attention": theta, "sliding_attention": values.get("local_rope_theta", 10_000.0) or theta}
        ropes = {kind: {"rope_theta": thetas[kind], **scaling, **_mapping(given, kind)} for kind in thetas}
        return {**values, **ropes}

    def config(self) -> GPTConfig:
        if ACTIVATIONS[self.classifier_activation] != ACTIVATIONS[self.hidden_activation]:
            raise ValueError(
                f"classifier_activation={self.classifier_activation!r} is not supported beside "
                f"hidden_activation={self.hidden_activation!r}; only the same is"
            )
        context, tied = self.max_position_embeddings, self.tie_word_embeddings
        trunk = TrunkConfig(
            **PRESETS["modernbert"]
            | self.sizes(self.num_hidden_layers, self.intermediate_size)
            | {
                "norm_eps": self.norm_eps,
                "norm_bias": self.norm_bias,
                "activation": ACTIVATIONS[self.hidden_activation],
                "attention_bias": self.attention_bias,
                "output_bias": self.attention_bias,
                "mlp_bias": self.mlp_bias,
                "rope": self.global_rope.config(context),
                "local_rope": self.local_rope.config(context),
                "windows": self.windows(),
                "dropout": max(self.attention_dropout, self.embedding_dropout, self.mlp_dropout),
            }
        )
        return GPTConfig("modernbert", self.vocab_size, context, tied, trunk, False, 0, True)

    def windows(self) -> tuple[int | None, ...]:
        """`local_attention` is the whole width of a window, ours the largest distance."""
        n, every, local = self.num_hidden_layers, self.global_attn_every_n_layers, self.local_attention // 2
        if self.layer_types is None:
            return tuple(local if layer % every else None for layer in range(n))
        if len(self.layer_types) != n:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for num_hidden_layers={n}")
        return tuple(None if kind == "full_attention" else local for kind in self.layer_types)

    @staticmethod
    def values(config: GPTConfig) -> dict[str, Any]:
        c = config.trunk
        windows = c.windows or (None,) * c.num_hidden_layers
        window = next((w for w in windows if w is not None), 64)
        every = next((layer for layer, w in enumerate(windows) if layer and w is None), len(windows))
        ropes = {"full_attention": c.rope or RopeConfig(), "sliding_attention": c.local_rope or c.rope or RopeConfig()}
        return {
            **_EncoderFile.size_values(config),
            "hidden_activation": activation_name(c.activation),
            "classifier_activation": activation_name(c.activation),
            "norm_eps": c.norm_eps,
            "norm_bias": c.norm_bias,
            "attention_bias": c.attention_bias,
            "mlp_bias": c.mlp_bias,
            "attention_dropout": c.dropout,
            "embedding_dropout": c.dropout,
            "mlp_dropout": c.dropout,
            "local_attention": 2 * window,
            "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
            "rope_parameters": {kind: rope_values(rope)["rope_parameters"] for kind, rope in ropes.items()},
            # What readers before transformers 5 have in place of the two.
            "global_attn_every_n_layers": every,
            "global_rope_theta": ropes["full_attention"].rope_theta,
            "local_rope_theta": ropes["sliding_attention"].rope_theta,
        }


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{key} must be a dictionary, got {found!r}")
    return found
