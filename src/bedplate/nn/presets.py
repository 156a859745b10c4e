"""Presets: the published architectures as values of `TrunkConfig`."""

from __future__ import annotations

from typing import Any

from bedplate.nn.rotary import RopeConfig

# What the families differ in; sizes come from the recipe or the config file. Sources: GPT-2 (Radford et al. 2019),
# Llama (arXiv 2302.13971, 2407.21783), Qwen3 (arXiv 2505.09388), BERT (arXiv 1810.04805), ModernBERT (2412.13663),
# ViT (2010.11929), CLIP (2103.00020; both of its towers).
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "rope": None,
    },
    "llama": {"norm": "rms", "norm_eps": 1e-5, "activation": "silu", "gated": True, "qk_norm": False},
    "qwen3": {"norm": "rms", "norm_eps": 1e-6, "activation": "silu", "gated": True, "qk_norm": True},
    "bert": {
        "norm": "layer",
        "norm_eps": 1e-12,
        "post_norm": True,
        "activation": "gelu",
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "rope": None,
    },
    "modernbert": {
        "norm": "layer",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "first_norm": False,
        "activation": "gelu",
        "gated": True,
        "qk_norm": False,
        "rope": RopeConfig(rope_theta=160_000.0),
        "local_rope": RopeConfig(rope_theta=10_000.0),
    },
    "vit": {
        "norm": "layer",
        "norm_eps": 1e-12,
        "activation": "gelu",
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "rope": None,
    },
    "clip": {
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "quick_gelu",
        "gated": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "rope": None,
    },
}
ENCODERS = ("bert", "modernbert")  # tokens see all of their text
GLOBAL_EVERY, LOCAL_WINDOW = 3, 64  # ModernBERT: each third layer sees all, the others 64 tokens to each side


def trunk_options(preset: str, num_hidden_layers: int) -> dict[str, Any]:
    """Values of `TrunkConfig` by preset, those that differ from layer to layer included."""
    if preset != "modernbert":
        return PRESETS[preset]
    windows = tuple(LOCAL_WINDOW if layer % GLOBAL_EVERY else None for layer in range(num_hidden_layers))
    return {**PRESETS[preset], "windows": windows}


def default_intermediate_size(preset: str, hidden_size: int) -> int:
    """4 D, or for gated networks 8/3 D rounded up to a multiple of 64: about the same number of weights."""
    if not PRESETS[preset]["gated"]:
        return 4 * hidden_size
    return -(-8 * hidden_size // 3 // 64) * 64
