"""Names and layouts of weights: `transformers` checkpoints of GPT-2, Llama and Qwen3, to and from `GPT`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

# Our module on the left, theirs on the right; {} is the layer, and `.weight` or `.bias` follows.
_GPT2 = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "trunk.blocks.{}.attn_norm": "transformer.h.{}.ln_1",
    "trunk.blocks.{}.attn.q_proj": "transformer.h.{}.attn.c_attn",
    "trunk.blocks.{}.attn.k_proj": "transformer.h.{}.attn.c_attn",
    "trunk.blocks.{}.attn.v_proj": "transformer.h.{}.attn.c_attn",
    "trunk.blocks.{}.attn.o_proj": "transformer.h.{}.attn.c_proj",
    "trunk.blocks.{}.mlp_norm": "transformer.h.{}.ln_2",
    "trunk.blocks.{}.mlp.up_proj": "transformer.h.{}.mlp.c_fc",
    "trunk.blocks.{}.mlp.down_proj": "transformer.h.{}.mlp.c_proj",
    "trunk.norm": "transformer.ln_f",
    "head": "lm_head",
    "score": "score",
}
_LLAMA = {
    "embed": "model.embed_tokens",
    "trunk.blocks.{}.attn_norm": "model.layers.{}.input_layernorm",
    "trunk.blocks.{}.attn.q_proj": "model.layers.{}.self_attn.q_proj",
    "trunk.blocks.{}.attn.k_proj": "model.layers.{}.self_attn.k_proj",
    "trunk.blocks.{}.attn.v_proj": "model.layers.{}.self_attn.v_proj",
    "trunk.blocks.{}.attn.o_proj": "model.layers.{}.self_attn.o_proj",
    "trunk.blocks.{}.attn.q_norm": "model.layers.{}.self_attn.q_norm",
    "trunk.blocks.{}.attn.k_norm": "model.layers.{}.self_attn.k_norm",
    "trunk.blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "trunk.blocks.{}.mlp.gate_proj": "model.layers.{}.mlp.gate_proj",
    "trunk.blocks.{}.mlp.up_proj": "model.layers.{}.mlp.up_proj",
    "trunk.blocks.{}.mlp.down_proj": "model.layers.{}.mlp.down_proj",
    "trunk.norm": "model.norm",
    "head": "lm_head",
    "score": "score",
}
# GPT2ForTokenClassification calls its score otherwise; the other families' classes agree.
_MODULES = {"gpt2": _GPT2, "gpt2 tokens": {**_GPT2, "score": "classifier"}, "llama": _LLAMA, "qwen3": _LLAMA}

HEAD = "lm_head.weight"

# GPT-2's Conv1D keeps its weight (in, out), and c_attn holds query, key and value side by side.
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_FUSED = re.compile(r"\.c_attn\.(weight|bias)$")
_PARTS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}

# Masks and frequencies that old checkpoints carry along.
_BUFFER = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")


def their_name(family: str, name: str) -> str:
    """The checkpoint's name of our tensor `name`; query, key and value share one in GPT-2."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    pattern = module if layer is None else module.replace(layer[0], ".{}.", 1)
    return f"{_MODULES[family][pattern].format(layer[1] if layer else '')}.{kind}"


def their_shape(source: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the checkpoint's tensor `source` that one of ours, of `shape`, is or is a part of."""
    if _FUSED.search(source):
        shape = (len(_PARTS) * shape[0], *shape[1:])
    return tuple(reversed(shape) if _CONV1D.search(source) else shape)


def full_names(family: str, names: Iterable[str]) -> dict[str, str]:
    """{name with the prefix that a model with a head has: name in the checkpoint}, without buffers.

    A checkpoint saved from the bare model (`GPT2Model`, `Qwen3Model`) has no prefix.
    """
    prefix = "transformer." if family.startswith("gpt2") else "model."
    kept = (name for name in names if not _BUFFER.search(name))
    return {
        name if name.startswith((prefix, "lm_head.", "score.", "classifier.")) else prefix + name: name for name in kept
    }


@torch.no_grad()
def tensors_to_hf(family: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's `named_parameters` under the checkpoint's names and in its layout.

    Relies on their order, query before key before value, and on a tied head's not being among them.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(their_name(family, name), []).append(tensor.detach())
    joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in groups.items()}
    return {name: (tensor.t() if _CONV1D.search(name) else tensor).contiguous() for name, tensor in joined.items()}


def tensor_from_hf(family: str, name: str, read: Callable[[str], Tensor]) -> Tensor:
    """Our tensor `name`; `read` gives a checkpoint's tensor by its name."""
    source = their_name(family, name)
    tensor = read(source)
    if _CONV1D.search(source):
        tensor = tensor.t()
    if _FUSED.search(source):
        tensor = tensor.chunk(len(_PARTS))[_PARTS[name.split(".")[-2]]]
    return tensor
