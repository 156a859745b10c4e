"""`config.json` of every family, to and from `GPTConfig`; here those of GPT-2, Llama and Qwen3.

Each file is a pydantic model whose defaults are those of its `transformers` 5 class: an absent key means here what
it means there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field, ValidationError, model_validator

from bedplate.errors import InputError
from bedplate.hub.config_bert import BertFile, ModernBertFile
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
    differences,
    rope_values,
    sentence,
    supported,
)
from bedplate.models.gpt import GPTConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS
from bedplate.nn.rotary import RopeConfig


class _GPT2File(File):
    architecture = "GPT2LMHeadModel"

    vocab_size: Positive = 50257
    n_positions: Positive = Field(1024, validation_alias=AliasChoices("n_positions", "max_position_embeddings"))
    n_embd: Positive = Field(768, validation_alias=AliasChoices("n_embd", "hidden_size"))
    n_layer: Positive = Field(12, validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    n_head: Positive = Field(12, validation_alias=AliasChoices("n_head", "num_attention_heads"))
    n_inner: Positive | None = None
    activation_function: Activation = "gelu_new"
    layer_norm_epsilon: Rate = 1e-5
    attn_pdrop: Share = 0.1
    resid_pdrop: Share = 0.1
    embd_pdrop: Share = 0.1
    tie_word_embeddings: bool = True
    scale_attn_weights: On = True
    scale_attn_by_inverse_layer_idx: Off = False
    add_cross_attention: Off = False

    def config(self) -> GPTConfig:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        trunk = TrunkConfig(
            **PRESETS["gpt2"]
            | {
                "hidden_size": self.n_embd,
                "num_hidden_layers": self.n_layer,
                "num_attention_heads": self.n_head,
                "num_key_value_heads": self.n_head,
                "head_dim": self.n_embd // self.n_head,
                "intermediate_size": self.n_inner or 4 * self.n_embd,
                "norm_eps": self.layer_norm_epsilon,
                "activation": ACTIVATIONS[self.activation_function],
                # The trunk has one dropout. Where the file has three, the largest: they act in training only.
                "dropout": max(self.attn_pdrop, self.resid_pdrop, self.embd_pdrop),
            }
        )
        return GPTConfig("gpt2", self.vocab_size, self.n_positions, self.tie_word_embeddings, trunk, self.is_causal)

    @staticmethod
    def values(config: GPTConfig) -> dict[str, Any]:
        c = config.trunk
        return {
            "n_positions": config.max_position_embeddings,
            "n_embd": c.hidden_size,
            "n_layer": c.num_hidden_layers,
            "n_head": c.num_attention_heads,
            "n_inner": c.intermediate_size,
            "activation_function": activation_name(c.activation),
            "layer_norm_epsilon": c.norm_eps,
            "attn_pdrop": c.dropout,
            "resid_pdrop": c.dropout,
            "embd_pdrop": c.dropout,
        }


class _LlamaFile(File):
    architecture = "LlamaForCausalLM"
    family: ClassVar[str] = "llama"

    vocab_size: Positive = 32000
    hidden_size: Positive = 4096
    intermediate_size: Positive = 11008
    num_hidden_layers: Positive = 32
    num_attention_heads: Positive = 32
    num_key_value_heads: Positive | None = None
    head_dim: Positive | None = None
    hidden_act: Activation = "silu"
    max_position_embeddings: Positive = 2048
    rms_norm_eps: Rate = 1e-6
    tie_word_embeddings: bool = False
    rope: RopeFile = Field(validation_alias=AliasChoices("rope_scaling", "rope_parameters"))
    attention_bias: bool = False
    attention_dropout: Share = 0.0
    mlp_bias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _gather_rope(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Bring the old spelling (`rope_theta` beside `rope_scaling`) into the form of the new (all in one)."""
        spelling = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
        rope = values.get(spelling) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{spelling} must be a dictionary, got {rope!r}")
        beside = {key: values.get(key) for key in ("rope_theta", "partial_rotary_factor")}
        rope = {"rope_theta": 10_000.0, **{key: value for key, value in beside.items() if value is not None}, **rope}
        if (original := values.get("original_max_position_embeddings")) is not None:
            rope["original_max_position_embeddings"] = original  # here the outer one wins
        return {**{key: value for key, value in values.items() if key != "rope_scaling"}, spelling: rope}

    def config(self) -> GPTConfig:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        trunk = TrunkConfig(
            **PRESETS[self.family]
            | {
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.num_hidden_layers,
                "num_attention_heads": self.num_attention_heads,
                "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
                "head_dim": self.head_dim or self.hidden_size // self.num_attention_heads,
                "intermediate_size": self.intermediate_size,
                "norm_eps": self.rms_norm_eps,
                "activation": ACTIVATIONS[self.hidden_act],
                "attention_bias": self.attention_bias,
                "output_bias": self.attention_bias,
                "mlp_bias": self.mlp_bias,
                "rope": self.rope.config(self.max_position_embeddings),
                "windows": self.windows(),
                # `transformers` has it in attention only, our trunk on residual branches too.
                "dropout": self.attention_dropout,
            }
        )
        context, tied = self.max_position_embeddings, self.tie_word_embeddings
        return GPTConfig(self.family, self.vocab_size, context, tied, trunk, self.is_causal)

    def windows(self) -> tuple[int | None, ...] | None:
        return None

    @staticmethod
    def values(config: GPTConfig) -> dict[str, Any]:
        c = config.trunk
        return {
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "head_dim": c.head_dim,
            "hidden_act": activation_name(c.activation),
            "max_position_embeddings": config.max_position_embeddings,
            "rms_norm_eps": c.norm_eps,
            "attention_bias": c.attention_bias,
            "attention_dropout": c.dropout,
            "mlp_bias": c.mlp_bias,
            **rope_values(c.rope or RopeConfig()),
        }


class _Qwen3File(_LlamaFile):
    architecture = "Qwen3ForCausalLM"
    family = "qwen3"

    vocab_size: Positive = 151936
    intermediate_size: Positive = 22016
    num_key_value_heads: Positive | None = 32
    head_dim: Positive | None = 128
    max_position_embeddings: Positive = 32768
    mlp_bias: Off = False
    use_sliding_window: bool = False
    sliding_window: Positive | None = 4096
    max_window_layers: int = 28
    layer_types: list[Annotated[str, supported("full_attention", "sliding_attention")]] | None = None

    def windows(self) -> tuple[int | None, ...] | None:
        """Ours is the largest distance; a causal sliding window counts the token itself, one of both sides does not."""
        n, window = self.num_hidden_layers, self.sliding_window if self.use_sliding_window else None
        if self.layer_types is None:
            slides = [window is not None and layer >= self.max_window_layers for layer in range(n)]
        else:
            slides = [kind == "sliding_attention" for kind in self.layer_types]
        if len(slides) != n:
            raise ValueError(f"layer_types has {len(slides)} entries for num_hidden_layers={n}")
        if not any(slides):
            return None
        if window is None:
            raise ValueError("layer_types has sliding_attention, but use_sliding_window or sliding_window is not set")
        return tuple(window - self.is_causal if slide else None for slide in slides)

    @staticmethod
    def values(config: GPTConfig) -> dict[str, Any]:
        windows = config.trunk.windows or (None,) * config.trunk.num_hidden_layers
        window = next((w for w in windows if w is not None), None)
        values = _LlamaFile.values(config)
        del values["mlp_bias"]
        return values | {
            "use_sliding_window": window is not None,
            "sliding_window": None if window is None else window + config.is_causal,
            "max_window_layers": next((i for i, w in enumerate(windows) if w is not None), len(windows)),
            "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
        }


FAMILIES: dict[str, type[_GPT2File | _LlamaFile | BertFile | ModernBertFile]] = {
    "gpt2": _GPT2File,
    "llama": _LlamaFile,
    "qwen3": _Qwen3File,
    "bert": BertFile,
    "modernbert": ModernBertFile,
}


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> GPTConfig:
    """The `GPTConfig` of a `transformers` config file's values; `where` names the file in errors.

    Raises:
        InputError: an unknown model_type, a value of the wrong type, or a variant that the trunk does not have.
    """
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"{where}: model_type={family!r} is not supported; supported: {', '.join(FAMILIES)}")
    try:
        return FAMILIES[family].model_validate(dict(values)).config()
    except ValidationError as error:
        raise InputError(f"{where}: {sentence(error)}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """The values of the config file from which `transformers` builds the same model.

    Raises:
        InputError: the family's `transformers` class cannot build it.
    """
    file, c = FAMILIES[config.family], config.trunk
    values = {
        "architectures": [file.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        **({} if config.is_causal or config.is_encoder else {"is_causal": False}),
        **file.values(config),
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    # Reading back is the proof that nothing was lost.
    if lost := differences(config, config_from_hf(values)):
        raise InputError(f"a {config.family} directory cannot hold a model with {', '.join(lost)}")
    if config.family == "llama" and c.hidden_size % c.num_attention_heads:
        raise InputError(
            f"a llama directory cannot hold a model with hidden_size={c.hidden_size} that is not a multiple of "
            f"num_attention_heads={c.num_attention_heads}"
        )
    return values
