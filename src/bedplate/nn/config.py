"""The shape of a trunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bedplate.errors import InputError
from bedplate.nn.rotary import RopeConfig


@dataclass(frozen=True, slots=True)
class TrunkConfig:
    """Names are those of `transformers` config files where these have one."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = True  # of layer norms
    post_norm: bool = False  # norms stand behind the residual sums, as in the first Transformer and in BERT
    first_norm: bool = True  # False: none before the first attention, where the embedding has one
    activation: Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"] = "silu"
    gated: bool = True
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = True
    rope: RopeConfig | None = field(default_factory=RopeConfig)
    windows: tuple[int | None, ...] | None = None  # by layer: the largest |pos_i - pos_j| that it sees
    local_rope: RopeConfig | None = None  # of layers with a window, where they have their own
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.rope is not None and self.head_dim % 2:
            raise InputError(f"head_dim={self.head_dim} must be even for rotary positions")
        assert self.local_rope is None or self.rope is not None, "local_rope is what some layers have instead of rope"
