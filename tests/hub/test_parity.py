"""Logits of directories written by `transformers`, read by us, and the way back."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bedplate.hub.config import config_from_hf
from bedplate.hub.directory import load_module, save_directory
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.nn.rotary import RopeConfig

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

ATOL = 1e-5
V, N = 96, 48
SIZES = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 5e5,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}


def gpt2(**options: Any) -> Any:
    sizes = {"vocab_size": V, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
    return transformers.GPT2Config(**sizes | options)


def llama(**options: Any) -> Any:
    return transformers.LlamaConfig(**SIZES | {"max_position_embeddings": 128} | options)


def qwen3(**options: Any) -> Any:
    return transformers.Qwen3Config(**SIZES | GROUPED | {"head_dim": 16, "max_position_embeddings": 128} | options)


def new_rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": parameters}


CONFIGS = {
    "gpt2-tied": lambda: gpt2(),
    "gpt2-untied": lambda: gpt2(tie_word_embeddings=False, n_inner=80, layer_norm_epsilon=1e-3),
    "gpt2-relu": lambda: gpt2(activation_function="relu"),
    "gpt2-gelu": lambda: gpt2(activation_function="gelu", attn_pdrop=0.0, resid_pdrop=0.2),
    "llama-untied": lambda: llama(),
    "llama-tied": lambda: llama(tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama-grouped": lambda: llama(**GROUPED),
    "llama-one-key-head": lambda: llama(num_key_value_heads=1, hidden_act="gelu_pytorch_tanh"),
    "llama-head-dim": lambda: llama(**GROUPED, head_dim=24),
    "llama-biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-rope-theta": lambda: llama(**new_rope(rope_type="default", rope_theta=5e5)),
    "llama-linear": lambda: llama(**new_rope(rope_type="linear", factor=3.0, rope_theta=1e4)),
    "llama-llama3": lambda: llama(**new_rope(rope_type="llama3", **LLAMA3)),
    "llama-yarn": lambda: llama(**new_rope(**YARN)),
    "llama-yarn-no-original": lambda: llama(**new_rope(rope_type="yarn", factor=4.0, rope_theta=1e4)),
    "llama-yarn-attention-factor": lambda: llama(**new_rope(**YARN, attention_factor=1.7)),
    "llama-yarn-mscale": lambda: llama(**new_rope(**YARN, mscale=0.7, mscale_all_dim=1.3)),
    "llama-yarn-betas": lambda: llama(**new_rope(**YARN, beta_fast=8, beta_slow=2, truncate=False)),
    "qwen3-untied": lambda: qwen3(),
    "qwen3-tied": lambda: qwen3(tie_word_embeddings=True),
    "qwen3-all-heads": lambda: qwen3(num_key_value_heads=4, attention_bias=True),
    "qwen3-yarn": lambda: qwen3(**new_rope(**YARN)),
    "qwen3-window": lambda: qwen3(use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "qwen3-window-by-layer": lambda: qwen3(
        use_sliding_window=True,
        sliding_window=1,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def theirs(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose every parameter matters: norms and biases are random too, and the weights large."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model)
    return model.to(dtype).eval()


def read(directory: Path) -> Any:
    """What `transformers` makes of a directory, in fp32."""
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise * 0.15 if parameter.dim() > 1 else 0.7 + 0.3 * noise)


def some_ids(rows: int = 2, length: int = N) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(2))


def difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


@torch.inference_mode()
def check_same(ours: GPT, model: Any, name: str) -> None:
    """Same logits in one pass, and token by token behind a cached prompt."""
    ids = some_ids()
    expected = model(ids).logits
    assert expected.std() > 0.1, "the logits are too flat to show a difference"
    whole = difference(ours(ids), expected)
    cache = ours.trunk.make_cache(len(ids), N)
    start = N - 6
    parts = [ours(ids[:, :start], cache=cache)] + [ours(ids[:, i : i + 1], cache=cache) for i in range(start, N)]
    cached = difference(torch.cat(parts, 1), expected)
    print(f"parity {name}: max abs difference {whole:.2e}, cached {cached:.2e}")
    assert whole < ATOL
    assert cached < ATOL


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_what_transformers_wrote(name: str, tmp_path: Path) -> None:
    model = theirs(CONFIGS[name]())
    model.save_pretrained(tmp_path / "theirs")
    ours = load_module(tmp_path / "theirs")
    check_same(ours, model, name)

    # And back: what we write of it, transformers reads.
    save_directory(tmp_path / "ours", ours)
    check_same(ours, read(tmp_path / "ours"), f"{name} back")
    assert filecmp.cmp(tmp_path / "ours/model.safetensors", tmp_path / "theirs/model.safetensors", shallow=False)


OLD_SPELLINGS = {
    "theta-only": {"rope_theta": 5e5},
    "theta-and-null": {"rope_theta": 5e5, "rope_scaling": None},
    "linear-type": {"rope_theta": 2e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama3": {
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_theta"}},
    },
    "yarn-type": {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    "yarn-outer-original": {
        "original_max_position_embeddings": 24,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    },
    "yarn-no-factor": {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 32}},
    "none-at-all": {},
}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("name", OLD_SPELLINGS)
def test_reads_the_old_spelling_of_rope(name: str, family: str, tmp_path: Path) -> None:
    theirs({"llama": llama, "qwen3": qwen3}[family]()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["rope_parameters"]
    file.write_text(json.dumps(values | OLD_SPELLINGS[name]))
    model = read(tmp_path)
    check_same(load_module(tmp_path), model, f"{family} {name}")


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_absent_keys_mean_what_they_mean_there(family: str) -> None:
    defaults = transformers.AutoConfig.for_model(family).to_dict()
    assert config_from_hf({"model_type": family}) == config_from_hf(defaults)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_sharded_and_bf16(family: str, tmp_path: Path) -> None:
    model = theirs({"gpt2": gpt2, "llama": llama, "qwen3": qwen3}[family](), torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    ours = load_module(tmp_path / "theirs")
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert difference(ours(some_ids()), model(some_ids()).logits) < 0.05
    # Not model.float(): its rotary frequencies have been through bf16.
    check_same(load_module(tmp_path / "theirs", "fp32"), read(tmp_path / "theirs"), f"{family} bf16 sharded")

    save_directory(tmp_path / "ours", ours, max_shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    assert max(file.stat().st_size for file in (tmp_path / "ours").glob("model-*.safetensors")) < 23_000
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype == torch.bfloat16
    check_same(load_module(tmp_path / "theirs", "fp32"), read(tmp_path / "ours"), f"{family} bf16 sharded back")


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_reads_the_bare_model_without_prefix(family: str, tmp_path: Path) -> None:
    model = theirs({"gpt2": gpt2, "llama": llama, "qwen3": qwen3}[family](tie_word_embeddings=True))
    model.base_model.save_pretrained(tmp_path)
    check_same(load_module(tmp_path), model, f"{family} bare")


def test_a_head_of_its_own_is_kept_whatever_the_config_says(tmp_path: Path) -> None:
    theirs(llama(tie_word_embeddings=False)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": True}))
    model = read(tmp_path)
    ours = load_module(tmp_path)
    assert not ours.config.tie_word_embeddings
    check_same(ours, model, "llama, tied by config only")


SIZES_OF_OURS: dict[str, Any] = {
    "vocab_size": V,
    "max_position_embeddings": 64,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
OURS = {
    "gpt2": {"preset": "gpt2", "dropout": 0.1},
    "gpt2-untied": {"preset": "gpt2", "tie_word_embeddings": False, "activation": "relu", "intermediate_size": 40},
    "llama": {"preset": "llama", "num_key_value_heads": 2, "dropout": 0.1},
    "llama-biases": {"preset": "llama", "attention_bias": True, "output_bias": True, "mlp_bias": True, "head_dim": 6},
    "llama-llama3": {"preset": "llama", "rope": RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 16)},
    "qwen3": {"preset": "qwen3", "num_key_value_heads": 1, "rope": RopeConfig(rope_theta=1e6)},
    "qwen3-untied": {"preset": "qwen3", "tie_word_embeddings": False, "head_dim": 32, "activation": "gelu"},
    "qwen3-window": {"preset": "qwen3", "windows": (5, None)},
    "qwen3-yarn": {
        "preset": "qwen3",
        "rope": RopeConfig("yarn", factor=2.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=0.5),
    },
}


@pytest.mark.parametrize("name", OURS)
def test_transformers_reads_what_we_initialised(name: str, tmp_path: Path) -> None:
    module = GPT(GPTConfig.from_preset(**SIZES_OF_OURS | OURS[name])).eval()
    module.init_weights(3)
    randomise(module)
    save_directory(tmp_path / "first", module)
    model = read(tmp_path / "first")
    check_same(module, model, f"ours {name}")
    dropout = module.config.trunk.dropout
    for key in ("attn_pdrop", "resid_pdrop", "embd_pdrop") if name.startswith("gpt2") else ("attention_dropout",):
        assert getattr(model.config, key) == dropout
    assert model.config.bos_token_id is None and model.config.eos_token_id is None

    again = load_module(tmp_path / "first")
    assert again.config == module.config
    save_directory(tmp_path / "second", again)
    match, mismatch, errors = filecmp.cmpfiles(
        tmp_path / "first", tmp_path / "second", [p.name for p in (tmp_path / "first").iterdir()], shallow=False
    )
    assert not mismatch and not errors and "model.safetensors" in match
