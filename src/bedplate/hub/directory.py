"""Model directories: what is read is checked tensor by tensor, what is written is whole or not there at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bedplate.data.tokenizer import end_of_text_id, save_tokenizer
from bedplate.errors import InputError
from bedplate.hub.classifier import classifier_from_hf, classifier_to_hf
from bedplate.hub.config import config_from_hf, config_to_hf
from bedplate.hub.folder import new_folder, read_json, write_atomic, write_json
from bedplate.hub.modules import encoder_to_hf, is_bare, make_module
from bedplate.hub.weights import HEAD, full_names, tensor_from_hf, tensors_to_hf, their_name, their_shape
from bedplate.models.bert import Encoder, MaskedLM
from bedplate.models.classifier import Classifier, Pooling
from bedplate.models.gpt import GPT, GPTConfig, TextModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS = ("F64", "F32", "BF16", "F16")
MAX_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the token that begins a text and of those that end one, as generation_config.json has them."""

    bos: int | None = None
    eos: tuple[int, ...] = ()

    @staticmethod
    def of(tokenizer: Tokenizer | None) -> SpecialTokens:
        """Those of our own tokenizers: one token both ends a document and begins the next."""
        if tokenizer is None:
            return SpecialTokens()
        end = end_of_text_id(tokenizer)
        return SpecialTokens(end, (end,))

    def to_hf(self) -> dict[str, Any]:
        eos = self.eos[0] if len(self.eos) == 1 else list(self.eos) or None
        return {"bos_token_id": self.bos, "eos_token_id": eos}


class Weights(Mapping[str, Tensor]):
    """The tensors of one or several safetensors files by name, memory-mapped: each is read when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._files: dict[str, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{file}: damaged or truncated safetensors file ({error}); download or save it again"
                ) from None
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def kind(self, name: str) -> str:
        """What numbers a tensor holds, as safetensors says it (F32, BF16, I8, ...)."""
        return str(self._files[name].get_slice(name).get_dtype())


def read_weights(directory: str | Path) -> Weights:
    """The weights of a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises:
        InputError: no such directory, no weights, only pickle weights, a missing shard, a damaged file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; give a model directory")
    if (directory / SINGLE).is_file():
        return Weights([directory / SINGLE])
    if (directory / INDEX).is_file():
        return Weights(_shards(directory))
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise InputError(
            f"{directory}: its weights are pickle files ({', '.join(pickles[:3])}), which can run any code when opened "
            "and are not read; where you trust them, convert them with transformers: "
            "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    raise InputError(f"{directory}: no weights; expected {SINGLE} or {INDEX}")


def write_weights(directory: str | Path, tensors: Mapping[str, Tensor], max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write `model.safetensors`, or shards of at most `max_shard_bytes` (or one tensor) with their index.

    Each file is written beside its place, flushed and renamed.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    directory, shards, sizes = Path(directory), [dict[str, Tensor]()], [0]
    for name, tensor in tensors.items():
        if shards[-1] and sizes[-1] + tensor.nbytes > max_shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor
        sizes[-1] += tensor.nbytes

    def write(file: str, shard: dict[str, Tensor]) -> None:
        write_atomic(directory / file, lambda path: save_file(shard, path, metadata={"format": "pt"}))

    if len(shards) == 1:
        write(SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(file, shard)
        weight_map |= dict.fromkeys(shard, file)
    write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})


def read_config(directory: str | Path) -> GPTConfig:
    """The `GPTConfig` in a model directory's `config.json`.

    Raises:
        InputError: no such directory or file, malformed JSON, or a model that the trunk does not have.
    """
    return config_from_hf(*read_config_values(directory))


def read_config_values(directory: str | Path) -> tuple[dict[str, Any], str]:
    """The values of `config.json`, and its path for error messages."""
    file = Path(directory) / "config.json"
    if not file.parent.is_dir():
        raise InputError(f"{file.parent}: no such folder; give a model directory")
    return read_json(file), str(file)


def read_special_tokens(directory: str | Path) -> SpecialTokens:
    """Special ids from `generation_config.json`, and from `config.json` where that has none.

    Raises:
        InputError: one of them is no whole number.
    """
    values: dict[str, Any] = {}
    for name in ("generation_config.json", "config.json"):
        file = Path(directory) / name
        if file.is_file():
            found = read_json(file)
            values = {
                key: found[key] for key in ("bos_token_id", "eos_token_id") if found.get(key) is not None
            } | values
    eos, bos = values.get("eos_token_id", ()), values.get("bos_token_id")
    eos = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    for each in (*eos, *(() if bos is None else (bos,))):
        if type(each) is not int:
            raise InputError(f"{directory}: bos_token_id and eos_token_id are token ids, and {each!r} is none; mend it")
    return SpecialTokens(bos, tuple(each for each in eos if each >= 0))  # -1 stands for none in some files


def load_module(
    directory: str | Path, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> GPT | Encoder | Classifier:
    """The model in a directory, in evaluation mode; in memory there is one copy of the weights.

    Args:
        dtype: fp32, bf16 or fp16; by default that of the checkpoint (of its embedding, where tensors differ).

    Raises:
        InputError: see `read_config` and `read_weights`; a tensor that is missing, unexpected or of another shape.
    """
    directory = Path(directory)
    values, file = read_config_values(directory)
    config, head, weights = config_from_hf(values, file), classifier_from_hf(values, file), read_weights(directory)
    layout = layout_name(config, None if head is None else head.pooling)
    names = full_names(layout, weights)
    embedding, own_head = their_name(layout, "embed.weight"), their_name(layout, HEAD)
    if head is None and config.tie_word_embeddings and own_head in names and embedding in names:
        # As in `transformers`, a head that differs from the embedding is kept, whatever the config says.
        if torch.equal(weights[names[own_head]], weights[names[embedding]]):
            del names[own_head]
        else:
            config = replace(config, tie_word_embeddings=False)
    with torch.device("meta"), Unfilled():
        module = make_module(config, head, names)
    template = dict(module.named_parameters())  # a tied weight is there once
    sources = {name: their_name(layout, name) for name in template}
    check_tensors(directory, {sources[n]: their_shape(sources[n], template[n].shape) for n in template}, names, weights)
    target = weights[names[embedding]].dtype if dtype is None else as_dtype(dtype)
    state = {}
    for name in template:
        tensor = tensor_from_hf(layout, name, lambda source: weights[names[source]])
        # Copied out of the memory map: a file that is replaced later must not change or crash a model in use.
        state[name] = tensor.to(device, target, copy=True, memory_format=torch.contiguous_format)
    if isinstance(module, GPT | MaskedLM) and config.tie_word_embeddings:
        state[HEAD] = state["embed.weight"]
    module.load_state_dict(state, assign=True)
    if isinstance(module, GPT | MaskedLM):
        module.tie_weights()
    return module.eval()


def save_directory(
    directory: str | Path,
    module: TextModel,
    tokenizer: Tokenizer | None = None,
    card: str = "",
    *,
    special: SpecialTokens | None = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model directory that `load` and `transformers` read. It is written beside its place, then renamed.

    Args:
        card: text of README.md, see `render_card`.
        special: special ids; by default the tokenizer's end of text.
        tokenizer_config: values of tokenizer_config.json, chat template included; by default those of our tokenizers.
        overwrite: replace an existing model directory; it is whole until the new one is.

    Raises:
        InputError: the folder exists and is not empty, the disk is full, or the family's config cannot hold the model.
    """
    special = special or SpecialTokens.of(tokenizer)
    dtype = str(module.embed.weight.dtype).removeprefix("torch.")
    layout = layout_name(module.config, module.pooling if isinstance(module, Classifier) else None)
    config = config_to_hf(module.config) | special.to_hf() | {"torch_dtype": dtype}
    if module.config.is_encoder:
        config |= encoder_to_hf(module, config["architectures"][0], tokenizer)
    if isinstance(module, Classifier):
        padding = _padding_id(tokenizer, tokenizer_config or {}, special)
        config |= classifier_to_hf(module.config, module.labels, module.pooling, padding)
    with new_folder(directory, overwrite) as partial:
        write_json(partial / "config.json", config)
        if isinstance(module, GPT):
            write_json(partial / "generation_config.json", special.to_hf())
        if tokenizer is not None:
            save_tokenizer(tokenizer, partial, module.config.max_position_embeddings, tokenizer_config)
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        tensors = tensors_to_hf(layout, dict(module.named_parameters()), bare=is_bare(module))
        write_weights(partial, tensors, max_shard_bytes)


def _padding_id(tokenizer: Tokenizer | None, config: Mapping[str, Any], special: SpecialTokens) -> int:
    """What pads a classifier's rows: its tokenizer's padding token, else what ends a document.

    Texts end with neither, so `transformers`, which takes the last token that is no padding, finds the end of a text.
    """
    token = config.get("pad_token")
    name = token.get("content") if isinstance(token, Mapping) else token
    found = tokenizer.token_to_id(name) if tokenizer is not None and isinstance(name, str) else None
    return found if found is not None else next(iter(special.eos), 0)


def layout_name(config: GPTConfig, pooling: Pooling | None) -> str:
    """How `hub.weights` calls the names and shapes of a checkpoint."""
    return "gpt2 tokens" if config.family == "gpt2" and pooling == "mean" else config.family


class Unfilled(TorchFunctionMode):
    """Leaves new weights unfilled: on the meta device there is nothing to fill, yet it would import half of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def check_tensors(
    directory: Path, expected: dict[str, tuple[int, ...]], names: Mapping[str, str], weights: Weights
) -> None:
    """Every tensor of the model is in the checkpoint in its shape, and there is no other."""
    if missing := sorted(expected.keys() - names.keys()):
        raise InputError(
            f"{directory}: tensor {missing[0]!r} is missing{_more(missing)}; the checkpoint is of another model "
            "than its config.json, or incomplete"
        )
    if unexpected := sorted(names.keys() - expected.keys()):
        raise InputError(
            f"{directory}: unexpected tensor {names[unexpected[0]]!r}{_more(unexpected)}; the checkpoint is of "
            "another model than its config.json"
        )
    for name, wanted in expected.items():
        if (kind := weights.kind(names[name])) not in FLOATS:
            raise InputError(f"{directory}: tensor {names[name]!r} holds {kind}; supported: {', '.join(FLOATS)}")
        if (shape := weights.shape(names[name])) != wanted:
            raise InputError(
                f"{directory}: tensor {names[name]!r} has shape {shape} in the checkpoint and "
                f"{wanted} by config.json; they are of different models"
            )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _shards(directory: Path) -> list[Path]:
    index = directory / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map; download or save it again")
    files = sorted(set(map(str, weight_map.values())))
    for file in files:
        if Path(file).name != file:
            raise InputError(f"{index}: the shard {file!r} is not a file beside it")
        if not (directory / file).is_file():
            raise InputError(
                f"{directory}: the shard {file} is missing, which {INDEX} lists; download or save it again"
            )
    return [directory / file for file in files]


def as_dtype(name: str | torch.dtype) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name not in DTYPES:
        raise InputError(f"dtype={name!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]
