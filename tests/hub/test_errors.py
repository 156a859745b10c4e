"""Everything that can be wrong with a model directory, each told in one sentence."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bedplate
import bedplate.hub.directory as directory_module
from bedplate.errors import InputError
from bedplate.hub.config import config_from_hf, config_to_hf
from bedplate.hub.directory import load_module, read_config, save_directory
from bedplate.models.gpt import GPT, GPTConfig
from bedplate.nn.rotary import RopeConfig

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def make_module(preset: str = "qwen3", **options: Any) -> GPT:
    module = GPT(GPTConfig.from_preset(preset, **SIZES | options)).eval()
    module.init_weights(0)
    return module


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_directory(tmp_path / "model", make_module())
    return tmp_path / "model"


def change_config(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def message(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_module(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_device_that_is_not_there(saved: Path) -> None:
    for device in ("gpu", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(InputError, match=f"device={device}: not available to PyTorch here"):
            bedplate.load(saved, device=device)


def test_missing_directory(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere") == f"{tmp_path}/nowhere: no such folder; give a model directory"


def test_missing_config(saved: Path) -> None:
    (saved / "config.json").unlink()
    assert message(saved) == f"{saved}/config.json: no such file; a model directory has one"


@pytest.mark.parametrize(
    "content, expected",
    [
        (b'{\n "a": 1,\n}', "config.json:3: not valid JSON"),
        (b"", "config.json:1: not valid JSON"),
        (b"[1]", "config.json: must hold a JSON object, got list"),
        (b'{"a": "\xff"}', "config.json: byte 7 is not UTF-8"),
    ],
)
def test_malformed_config(saved: Path, content: bytes, expected: str) -> None:
    (saved / "config.json").write_bytes(content)
    assert expected in message(saved)


def test_no_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert message(saved) == f"{saved}: no weights; expected model.safetensors or model.safetensors.index.json"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickle_is_refused_unopened(saved: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os._exit, (13,)

    (saved / "model.safetensors").unlink()
    (saved / name).write_bytes(pickle.dumps(Bomb()))
    text = message(saved)
    assert f"pickle files ({name}), which can run any code when opened and are not read" in text
    assert "save_pretrained(NEW)" in text


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_safetensors(saved: Path, keep: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert message(saved).startswith(f"{file}: damaged or truncated safetensors file (")


def test_corrupt_safetensors(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    assert message(saved).startswith(f"{file}: damaged or truncated safetensors file (")


def test_missing_shard(tmp_path: Path) -> None:
    save_directory(tmp_path / "m", make_module(), max_shard_bytes=4000)
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    shards[1].unlink()
    assert f"the shard {shards[1].name} is missing, which model.safetensors.index.json lists" in message(tmp_path / "m")


@pytest.mark.parametrize(
    "content, expected",
    [
        (
            {"weight_map": {"a": "../../secret.safetensors"}},
            "the shard '../../secret.safetensors' is not a file beside it",
        ),
        ({"weight_map": {}}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_bad_index(saved: Path, content: dict[str, Any], expected: str) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(content))
    assert expected in message(saved)


def test_missing_tensor(saved: Path) -> None:
    change_weights(saved, lambda tensors: tensors.pop("model.norm.weight"))
    assert "tensor 'model.norm.weight' is missing; the checkpoint is of another model" in message(saved)


def test_unexpected_tensors(saved: Path) -> None:
    change_weights(saved, lambda tensors: tensors.update({"score.weight": torch.ones(2), "x.bias": torch.ones(1)}))
    assert "unexpected tensor 'x.bias' (and 1 more)" in message(saved)


def test_tensor_of_another_shape(saved: Path) -> None:
    change_config(saved, intermediate_size=128)
    text = message(saved)
    assert "tensor 'model.layers.0.mlp.gate_proj.weight' has shape (64, 16) in the checkpoint" in text
    assert "(128, 16) by config.json" in text


def test_fused_tensor_of_another_shape_is_told_as_it_stands_in_the_file(tmp_path: Path) -> None:
    save_directory(tmp_path, make_module("gpt2"), overwrite=True)
    key = "transformer.h.1.attn.c_attn.weight"
    change_weights(tmp_path, lambda tensors: tensors.update({key: torch.ones(16, 32)}))
    assert f"tensor {key!r} has shape (16, 32) in the checkpoint and (16, 48) by config.json" in message(tmp_path)


def test_quantised_tensor(saved: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(saved, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    assert f"tensor {name!r} holds I8; supported: F64, F32, BF16, F16" in message(saved)


def test_unknown_dtype(saved: Path) -> None:
    with pytest.raises(InputError, match="dtype='int4' is not known; choose one of fp32, bf16, fp16"):
        load_module(saved, "int4")


YARN = {"rope_type": "yarn", "factor": 2.0}
UNSUPPORTED = [
    ("llama", {"model_type": "mamba"}, "model_type='mamba' is not supported; supported: gpt2, llama, qwen3"),
    ("llama", {"model_type": None}, "model_type=None is not supported; supported: gpt2, llama, qwen3"),
    ("llama", {"model_type": []}, "model_type=[] is not supported; supported: gpt2, llama, qwen3"),
    ("llama", {"vocab_size": 10**30}, "vocab_size=1000000000000000000000000000000: input should be less than"),
    ("modernbert", {"rope_parameters": 3.5}, "rope_parameters must be a dictionary, got 3.5"),
    ("modernbert", {"rope_scaling": -1}, "rope_scaling must be a dictionary, got -1"),
    ("llama", {"hidden_act": "mish"}, "hidden_act='mish' is not supported; supported: silu, swish, gelu, "),
    ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh' is not supported; supported: silu, "),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported; supported: True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported; supported: False"),
    ("gpt2", {"n_embd": 30, "n_head": 4}, "n_embd=30 is not a multiple of n_head=4"),
    ("gpt2", {"n_embd": "wide"}, "n_embd='wide': input should be a valid integer"),
    (
        "llama",
        {"hidden_size": 30, "num_attention_heads": 4},
        "hidden_size=30 is not a multiple of num_attention_heads=4",
    ),
    ("llama", {"num_attention_heads": 32, "num_key_value_heads": 5}, "must be a multiple of num_key_value_heads=5"),
    ("llama", {"head_dim": 7}, "head_dim=7 must be even"),
    ("llama", {"vocab_size": 0}, "vocab_size=0: input should be greater than 0"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; supported: 1.0"),
    (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling.type='dynamic' is not supported; supported: default, linear, llama3, yarn",
    ),
    (
        "qwen3",
        {"rope_parameters": {"rope_type": "longrope"}},
        "rope_parameters.rope_type='longrope' is not supported; supported: default, linear, llama3, yarn",
    ),
    ("qwen3", {"rope_scaling": "yarn"}, "rope_scaling must be a dictionary, got 'yarn'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rotary positions of type 'linear' need factor, which is missing"),
    ("llama", {"rope_scaling": {**YARN, "rope_type": "llama3"}}, "'llama3' need low_freq_factor, which is missing"),
    ("llama", {"rope_parameters": {**YARN, "factor": -1}}, "rope_parameters.factor=-1: input should be greater than 0"),
    (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        "rope_parameters.full_attention={'rope_theta': 1000000.0} is not supported",
    ),
    (
        "llama",
        {"quantization_config": {"bits": 4}},
        "quantization_config={'bits': 4} is not supported; supported: None",
    ),
    ("qwen3", {"mlp_bias": True}, "mlp_bias=True is not supported; supported: False"),
    ("qwen3", {"layer_types": ["mamba"]}, "layer_types.0='mamba' is not supported; supported: full_attention, sliding"),
    ("qwen3", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for num_hidden_layers=32"),
    (
        "qwen3",
        {"layer_types": ["sliding_attention"], "num_hidden_layers": 1},
        "layer_types has sliding_attention, but use_sliding_window or sliding_window is not set",
    ),
]


@pytest.mark.parametrize("family, values, expected", UNSUPPORTED)
def test_what_the_trunk_does_not_have(family: str, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        config_from_hf({"model_type": family} | values, "dir/config.json")
    assert str(caught.value).startswith("dir/config.json: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "preset, options, expected",
    [
        ("llama", {"qk_norm": True}, "a llama directory cannot hold a model with trunk.qk_norm=True"),
        ("llama", {"windows": (3, None)}, "trunk.windows=(3, None)"),
        ("qwen3", {"windows": (3, 4)}, "trunk.windows=(3, 4)"),
        ("qwen3", {"attention_bias": True}, "trunk.output_bias=False"),
        ("gpt2", {"rope": RopeConfig()}, "a gpt2 directory cannot hold a model with trunk.rope=RopeConfig("),
        ("gpt2", {"num_key_value_heads": 1}, "trunk.num_key_value_heads=1"),
        ("llama", {"num_attention_heads": 3, "head_dim": 8}, "hidden_size=16 that is not a multiple of"),
    ],
)
def test_what_a_family_cannot_say(preset: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        config_to_hf(GPTConfig.from_preset(preset, **SIZES | options))
    assert expected in str(caught.value)


def test_existing_folder_is_kept(saved: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(InputError, match="the folder exists and is not empty; choose another or pass overwrite=True"):
        save_directory(saved, make_module("llama"))
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_overwrite_replaces_the_whole_folder(saved: Path) -> None:
    save_directory(saved, make_module(), max_shard_bytes=4000, overwrite=True)
    save_directory(saved, make_module("llama"), overwrite=True)
    assert sorted(file.name for file in saved.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert read_config(saved).family == "llama"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_link_to_a_folder_stays_a_link(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(saved)
    for preset in ("llama", "qwen3"):
        save_directory(tmp_path / "link", make_module(preset), overwrite=True)
        assert (tmp_path / "link").is_symlink() and read_config(saved).family == preset
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"link", saved.name})


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_directory(tmp_path / "empty", make_module())
    assert read_config(tmp_path / "empty").family == "qwen3"


def test_only_model_directories_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="is not a model directory and is not overwritten"):
        save_directory(tmp_path, make_module(), overwrite=True)
    with pytest.raises(InputError, match=r"thesis.txt: is a file; give a folder"):
        save_directory(tmp_path / "thesis.txt", make_module(), overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_directory_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    monkeypatch.setattr(directory_module, "save_file", no_space)
    with pytest.raises(InputError, match=r"cannot be written \(.*No space left on device\); free some disk space"):
        save_directory(saved, make_module("llama"), overwrite=True)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_what_a_killed_save_left_is_put_right(saved: Path) -> None:
    saved.rename(saved.parent / ".model.old")
    (saved.parent / ".model.partial").mkdir()
    with pytest.raises(InputError, match="not empty"):
        save_directory(saved, make_module("llama"))
    assert read_config(saved).family == "qwen3"
    save_directory(saved, make_module("llama"), overwrite=True)
    assert read_config(saved).family == "llama"
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_failed_rename_puts_the_old_directory_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    replace = os.replace

    def fail_once(source: Path, target: Path) -> None:
        if target == saved and str(source).endswith(".partial"):
            no_space()
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(InputError, match="cannot be written"):
        save_directory(saved, make_module("llama"), overwrite=True)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
