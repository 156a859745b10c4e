"""Names and layouts of weights: `transformers` checkpoints of every family, to and from our modules."""

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
_BERT = {
    "embed": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "trunk.blocks.{}.attn.q_proj": "bert.encoder.layer.{}.attention.self.query",
    "trunk.blocks.{}.attn.k_proj": "bert.encoder.layer.{}.attention.self.key",
    "trunk.blocks.{}.attn.v_proj": "bert.encoder.layer.{}.attention.self.value",
    "trunk.blocks.{}.attn.o_proj": "bert.encoder.layer.{}.attention.output.dense",
    "trunk.blocks.{}.attn_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "trunk.blocks.{}.mlp.up_proj": "bert.encoder.layer.{}.intermediate.dense",
    "trunk.blocks.{}.mlp.down_proj": "bert.encoder.layer.{}.output.dense",
    "trunk.blocks.{}.mlp_norm": "bert.encoder.layer.{}.output.LayerNorm",
    "pooler.dense": "bert.pooler.dense",
    "transform.dense": "cls.predictions.transform.dense",
    "transform.norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions.decoder",
    "head.bias": "cls.predictions.bias",
    "score": "classifier",
}
_MODERNBERT = {
    "embed": "model.embeddings.tok_embeddings",
    "embed_norm": "model.embeddings.norm",
    "trunk.blocks.{}.attn_norm": "model.layers.{}.attn_norm",
    "trunk.blocks.{}.attn.q_proj": "model.layers.{}.attn.Wqkv",
    "trunk.blocks.{}.attn.k_proj": "model.layers.{}.attn.Wqkv",
    "trunk.blocks.{}.attn.v_proj": "model.layers.{}.attn.Wqkv",
    "trunk.blocks.{}.attn.o_proj": "model.layers.{}.attn.Wo",
    "trunk.blocks.{}.mlp_norm": "model.layers.{}.mlp_norm",
    "trunk.blocks.{}.mlp.gate_proj": "model.layers.{}.mlp.Wi",
    "trunk.blocks.{}.mlp.up_proj": "model.layers.{}.mlp.Wi",
    "trunk.blocks.{}.mlp.down_proj": "model.layers.{}.mlp.Wo",
    "trunk.norm": "model.final_norm",
    "transform.dense": "head.dense",
    "transform.norm": "head.norm",
    "head": "decoder",
    "score": "classifier",
}
# GPT2ForTokenClassification calls its score otherwise; the other families' classes agree.
_MODULES = {
    "gpt2": _GPT2,
    "gpt2 tokens": {**_GPT2, "score": "classifier"},
    "llama": _LLAMA,
    "qwen3": _LLAMA,
    "bert": _BERT,
    "modernbert": _MODERNBERT,
}

HEAD, TRANSFORM, POOLER = "head.weight", "transform.dense.weight", "pooler.dense.weight"

# GPT-2's Conv1D keeps its weight (in, out).
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
# Tensors that hold several of ours one behind the other.
_FUSED = re.compile(r"\.(c_attn|Wqkv|Wi)\.(weight|bias)$")
_PARTS = {
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "Wi": ("gate_proj", "up_proj"),
}

# Masks, positions and frequencies that old checkpoints carry along, and BERT's guess of the next sentence.
_UNUSED = re.compile(
    r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$|embeddings\.position_ids$|^cls\.seq_relationship\."
)
# The names of TensorFlow's norms, which the first BERTs kept.
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_OLD_NORM = re.compile("|".join(map(re.escape, _OLD)))
_HEADS = {
    "transformer.": ("lm_head.", "score.", "classifier."),
    "model.": ("lm_head.", "score.", "classifier.", "head.", "decoder."),
    "bert.": ("cls.", "classifier."),
}
# Beside a head that is not tied, `transformers` adds this bias and not cls.predictions.bias.
_DECODER_BIAS = "cls.predictions.decoder.bias"


def their_name(family: str, name: str) -> str:
    """The checkpoint's name of our tensor `name`; query, key and value share one in GPT-2 and ModernBERT."""
    if name in _MODULES[family]:
        return _MODULES[family][name]
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    pattern = module if layer is None else module.replace(layer[0], ".{}.", 1)
    return f"{_MODULES[family][pattern].format(layer[1] if layer else '')}.{kind}"


def their_shape(source: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the checkpoint's tensor `source` that one of ours, of `shape`, is or is a part of."""
    if fused := _FUSED.search(source):
        shape = (len(_PARTS[fused[1]]) * shape[0], *shape[1:])
    return tuple(reversed(shape) if _CONV1D.search(source) else shape)


def full_names(family: str, names: Iterable[str]) -> dict[str, str]:
    """{name with the prefix that a model with a head has: name in the checkpoint}, without buffers.

    A checkpoint saved from the bare model (`GPT2Model`, `BertModel`) has no prefix.
    """
    prefix = _prefix(family)
    full = {
        name if name.startswith((prefix, *_HEADS[prefix])) else prefix + name: name
        for name in names
        if not _UNUSED.search(name)
    }
    if family == "bert":
        full = {_OLD_NORM.sub(lambda m: _OLD[m[0]], ours): name for ours, name in full.items()}
        if _DECODER_BIAS in full:
            full["cls.predictions.bias"] = full.pop(_DECODER_BIAS)
    return full


def _prefix(family: str) -> str:
    """What the names of all tensors but the heads' begin with."""
    return f"{_MODULES[family]['embed'].split('.')[0]}."


@torch.no_grad()
def tensors_to_hf(family: str, tensors: Mapping[str, Tensor], *, bare: bool = False) -> dict[str, Tensor]:
    """A module's `named_parameters` under the checkpoint's names and in its layout; `bare`: those without a prefix.

    Relies on their order, query before key before value, and on a tied head's not being among them.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(their_name(family, name), []).append(tensor.detach())
    joined = {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in groups.items()}
    if family == "bert" and HEAD in tensors:
        joined[_DECODER_BIAS] = joined["cls.predictions.bias"].clone()
    prefix = _prefix(family) if bare else ""
    return {
        name.removeprefix(prefix): (tensor.t() if _CONV1D.search(name) else tensor).contiguous()
        for name, tensor in joined.items()
    }


def tensor_from_hf(family: str, name: str, read: Callable[[str], Tensor]) -> Tensor:
    """Our tensor `name`; `read` gives a checkpoint's tensor by its name."""
    source = their_name(family, name)
    tensor = read(source)
    if _CONV1D.search(source):
        tensor = tensor.t()
    if fused := _FUSED.search(source):
        parts = _PARTS[fused[1]]
        tensor = tensor.chunk(len(parts))[parts.index(name.split(".")[-2])]
    return tensor
