"""What `config_to_hf` writes, `config_from_hf` reads back, over the shapes that each family has."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.hub.config import config_from_hf, config_to_hf
from bedplate.models.gpt import GPTConfig
from bedplate.nn.rotary import RopeConfig

SMALL = st.integers(1, 6)
POSITIVE = st.floats(1, 1e7)
FACTORS = {"factor": POSITIVE}
CONTEXT = {"original_max_position_embeddings": st.integers(1, 10**6)}
ROPES = st.one_of(
    st.builds(RopeConfig, rope_theta=POSITIVE),
    st.builds(RopeConfig, st.just("linear"), POSITIVE, **FACTORS),
    st.builds(
        RopeConfig,
        st.just("llama3"),
        POSITIVE,
        **FACTORS,
        **CONTEXT,
        low_freq_factor=POSITIVE,
        high_freq_factor=POSITIVE,
    ),
    st.builds(
        RopeConfig,
        st.just("yarn"),
        POSITIVE,
        **FACTORS,
        **CONTEXT,
        beta_fast=POSITIVE,
        beta_slow=POSITIVE,
        mscale=st.none() | POSITIVE,
        mscale_all_dim=st.none() | POSITIVE,
        attention_factor=st.none() | POSITIVE,
        truncate=st.booleans(),
    ),
)


@st.composite
def configs(draw: Any) -> GPTConfig:
    family = draw(st.sampled_from(["gpt2", "llama", "qwen3"]))
    key_heads, layers = draw(SMALL), draw(SMALL)
    heads = key_heads * (1 if family == "gpt2" else draw(SMALL))
    options: dict[str, Any] = {}
    if family != "gpt2":
        bias = draw(st.booleans())
        options |= {"num_key_value_heads": key_heads, "head_dim": 2 * draw(SMALL), "rope": draw(ROPES)}
        options |= {"attention_bias": bias, "output_bias": bias}
    if family == "llama":
        options["mlp_bias"] = draw(st.booleans())
    if family == "qwen3":
        window = draw(st.none() | st.integers(0, 99))
        slides = draw(st.lists(st.booleans(), min_size=layers, max_size=layers))
        windows = tuple(window if slide else None for slide in slides)
        options["windows"] = windows if any(w is not None for w in windows) else None
    return GPTConfig.from_preset(
        family,
        vocab_size=draw(st.integers(1, 10**6)),
        max_position_embeddings=draw(st.integers(1, 10**6)),
        hidden_size=heads * draw(SMALL),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=draw(SMALL),
        tie_word_embeddings=draw(st.booleans()),
        activation=draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu"])),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        dropout=draw(st.sampled_from([0.0, 0.1, 0.25])),
        **options,
    )


@given(config=configs())
@settings(max_examples=80, deadline=None)
def test_a_config_survives_its_file(config: GPTConfig) -> None:
    values = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(values) == config
    # Readers older than transformers 5 know only the old spelling.
    assert config_from_hf({key: value for key, value in values.items() if key != "rope_parameters"}) == config
    assert config_from_hf({key: value for key, value in values.items() if key != "rope_scaling"}) == config
