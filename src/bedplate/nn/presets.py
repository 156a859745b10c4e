"""Presets: the published architectures as values of `TrunkConfig`."""

from __future__ import annotations

from typing import Any

# What the families differ in; sizes come from the recipe or the config file. Sources: GPT-2 (Radford et al. 2019),
# Llama (arXiv 2302.13971, 2407.21783), Qwen3 (arXiv 2505.09388).
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
}


def default_intermediate_size(preset: str, hidden_size: int) -> int:
    """4 D, or for gated networks 8/3 D rounded up to a multiple of 64: about the same number of weights."""
    if not PRESETS[preset]["gated"]:
        return 4 * hidden_size
    return -(-8 * hidden_size // 3 // 64) * 64
