"""LoRA adapters on models: put on, taken off, merged, made by fine-tuning and saved."""

from __future__ import annotations

import copy
import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bedplate.data.examples import READING
from bedplate.data.tokenizer import load_tokenizer, load_tokenizer_config, save_tokenizer
from bedplate.errors import InputError
from bedplate.hub.directory import Unfilled, layout_name, read_special_tokens
from bedplate.hub.folder import write_json
from bedplate.hub.locate import HUB, locate
from bedplate.hub.peft import CONFIG, PREFIX, SCORES, TASKS, WEIGHTS, Adapter, Origin, read_adapter, write_adapter
from bedplate.hub.weights import full_names, their_name
from bedplate.models.classifier import Classifier, Pooling
from bedplate.models.gpt import GPT, TextModel
from bedplate.nn.lora import (
    adapted_layers,
    add_adapter,
    merged_copy,
    scale_of,
    sharing_copy,
    train_adapter_only,
)
from bedplate.recipe.finetune import AdapterRecipe

if TYPE_CHECKING:
    from bedplate.hub.model import Model

ADAPTED = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])\.weight")


def fingerprint(module: TextModel) -> str:
    """What an adapter knows its base by: a hash of the signs of the weights of embeddings and trunk.

    Signs, as these are the same in fp32, bf16 and fp16, while any training turns some of them. Heads do not count: a
    language model and the classifier that is made of it are the same base.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if name.startswith(("embed.", "positions.", "trunk.")) and ".lora_" not in name:
            digest.update(f"{name} {list(parameter.shape)}\n".encode())
            digest.update(np.packbits(torch.signbit(parameter.detach()).cpu().numpy()).tobytes())
    return digest.hexdigest()


def linear_layers(module: TextModel) -> dict[str, list[str]]:
    """{name in `transformers`: names of ours} of the linear layers in blocks; GPT-2's c_attn is three of ours."""
    layout, layers = layout_of(module), dict[str, list[str]]()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith("trunk.blocks."):
            layers.setdefault(their_name(layout, f"{name}.weight").removesuffix(".weight"), []).append(name)
    return layers


def layout_of(module: TextModel) -> str:
    """How `hub.weights` calls the names and shapes of the module's checkpoints."""
    return layout_name(module.config, module.pooling if isinstance(module, Classifier) else None)


def put_adapter(module: TextModel, recipe: AdapterRecipe, seed: int) -> None:
    """Put a fresh adapter on a module, which computes what it did before, and freeze all else but a score.

    Raises:
        InputError: a target is no linear layer of the blocks, or the rank is larger than a matrix.
    """
    assert recipe.rank
    _refuse_encoder(module, "adapter.rank")
    layers = linear_layers(module)
    chosen: dict[str, list[str]] = {}
    for target in targets_of(module, recipe):
        found = {their: ours for their, ours in layers.items() if f".{their}".endswith(f".{target}")}
        if not found:
            raise InputError(_unknown_target(module, target))
        chosen |= found
    for ours in chosen.values():
        shape = _linear(module, ours[0]).weight.shape
        if recipe.rank > min(shape):
            raise InputError(
                f"adapter.rank={recipe.rank} is larger than {ours[0].rpartition('.')[2]}, a matrix of {shape[0]} x "
                f"{shape[1]}; give at most {min(shape)}, or other adapter.targets"
            )
    scale = scale_of(recipe.rank, _alpha(recipe))
    add_adapter(module, chosen.values(), recipe.rank, scale, recipe.dropout, seed)
    train_adapter_only(module, besides=["score."])


def targets_of(module: TextModel, recipe: AdapterRecipe) -> list[str]:
    """The recipe's targets, by default all linear layers of the blocks."""
    return recipe.targets or list(dict.fromkeys(their.rpartition(".")[2] for their in linear_layers(module)))


def save_adapter(directory: Path, model: Model, recipe: AdapterRecipe, base: str) -> None:
    """Write the adapter that is on a model's module as an adapter directory.

    A language model's tokenizer goes along: its chat template, and the tokens that end a turn, may be new.

    Args:
        base: as the recipe of fine-tuning names it.
    """
    module, layers, tensors = model.module, adapted_layers(model.module), dict[str, Tensor]()
    assert recipe.rank and layers
    for their, ours in linear_layers(module).items():
        if ours[0] in layers:
            tensors[f"{their}.lora_A.weight"] = layers[ours[0]].lora_A
            tensors[f"{their}.lora_B.weight"] = torch.cat([layers[name].lora_B.detach() for name in ours])
    named = base.startswith(("hf:", "zoo:"))
    origin = Origin(
        base=base if named else str(locate(base).resolve()),  # a relative path means something in one folder alone
        fingerprint=fingerprint(module),
        is_causal=module.config.is_causal,
    )
    pooling = None
    if isinstance(module, Classifier):
        pooling = module.pooling
        origin = origin.model_copy(update={"labels": module.labels, "pooling": pooling})
        tensors |= {their_name(layout_of(module), f"score.{name}"): p for name, p in module.score.named_parameters()}
    hub = HUB.fullmatch(base)
    adapter = Adapter(
        rank=recipe.rank,
        alpha=_alpha(recipe),
        targets=targets_of(module, recipe),
        task=TASKS[pooling],
        tensors=tensors,
        base=hub["name"] if hub else base if base.startswith("zoo:") else str(locate(base)),
        revision=hub["revision"] if hub else None,
        dropout=recipe.dropout,
        conv1d=module.config.family == "gpt2",
        origin=origin,
    )
    write_adapter(directory, adapter)
    if isinstance(module, GPT):
        if model.tokenizer is not None:
            save_tokenizer(model.tokenizer, directory, module.config.max_position_embeddings, model.tokenizer_config)
        write_json(directory / "generation_config.json", model.special.to_hf())
    elif READING in model.tokenizer_config:
        write_json(directory / "tokenizer_config.json", {READING: model.tokenizer_config[READING]})


def base_of(directory: Path) -> str:
    """The base that an adapter names, in a form that `load` takes.

    A relative path is looked for from the current folder, then from the adapter's. What is no path is a model of the
    Hugging Face Hub, as for PEFT, unless the adapter was made here and says otherwise.

    Raises:
        InputError: it names none, or none that can be found.
    """
    adapter = read_adapter(directory)
    origin, named = adapter.origin.base, adapter.base
    if origin and origin.startswith(("hf:", "zoo:")):
        return origin
    for path in (Path(name).expanduser() for name in (named, origin) if name):
        for found in (path, directory / path):
            if found.is_dir() and found.resolve() == directory.resolve():
                raise InputError(f"{directory}: names itself as its base; put the base's path into adapter_config.json")
            if found.is_dir():
                return str(found)
    hub = f"hf:{named}" + (f"@{adapter.revision}" if adapter.revision else "")
    if named and not origin and HUB.fullmatch(hub):
        return hub
    said = f"its base {named or origin!r} is not there" if named or origin else "it names no base"
    raise InputError(f"{directory}: {said}; load the base itself, and put the adapter on it (--adapter, load_adapter)")


def attach(model: Model, source: str | Path) -> None:
    """Put an adapter on a model in place of the one that is on it; see `Model.load_adapter`."""
    directory = _locate_adapter(source)
    adapter, plain = read_adapter(directory), model.plain or copy.copy(model)
    _refuse_encoder(plain.module, str(directory))
    _check_fingerprint(plain.module, adapter, directory)
    assert isinstance(plain.module, GPT | Classifier)
    module = _with_head(plain.module, adapter, directory)
    _fill(module, adapter, directory)
    values = load_tokenizer_config(directory)
    own: dict[str, Any] = {}
    if not isinstance(module, GPT):
        others = {key: value for key, value in plain.tokenizer_config.items() if key != READING}
        own["tokenizer_config"] = others | {key: values[key] for key in (READING,) if key in values}
    else:
        own["tokenizer_config"] = values or plain.tokenizer_config
        if (directory / "tokenizer.json").is_file():
            own["tokenizer"] = load_tokenizer(directory)
        if (directory / "generation_config.json").is_file():
            own["special"] = read_special_tokens(directory)
    detach(model)  # all has been read: what cannot be read leaves the model as it was
    vars(model).update(own, module=module.eval(), plain=plain)


def detach(model: Model) -> None:
    """Take the adapter off a model: it is as it was before, labels and chat template included."""
    if model.plain is not None:
        vars(model).update(vars(model.plain))


def merge(model: Model) -> None:
    """Add a model's adapter to its matrices."""
    if model.plain is not None:
        model.module, model.plain = merged_copy(model.module), None


def _alpha(recipe: AdapterRecipe) -> float:
    return recipe.alpha or 2.0 * (recipe.rank or 0)


def _refuse_encoder(module: TextModel, where: str) -> None:
    if module.config.is_encoder:
        raise InputError(
            f"{where}: adapters are for models that write, such as qwen3, llama and gpt2; train a "
            f"{module.config.family} model whole"
        )


def _unknown_target(module: TextModel, target: str) -> str:
    family = module.config.family
    known = list(dict.fromkeys(their.rpartition(".")[2] for their in linear_layers(module)))
    near = difflib.get_close_matches(target, known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(known)}"
    return f"adapter.targets: {target!r} is no linear layer of a {family} block; {advice}"


def _locate_adapter(source: str | Path) -> Path:
    """The adapter directory that `source` names; of a run directory, its `adapter/`."""
    if isinstance(source, str) and source.startswith("hf:"):
        return locate(source)
    directory = Path(source).expanduser()
    of_run = directory / "adapter"
    return of_run if not (directory / CONFIG).exists() and (of_run / CONFIG).exists() else directory


def _check_fingerprint(module: TextModel, adapter: Adapter, directory: Path) -> None:
    expected = adapter.origin.fingerprint
    if expected is not None and (found := fingerprint(module)) != expected:
        raise InputError(
            f"{directory}: the adapter is of another base ({adapter.base or adapter.origin.base}, fingerprint "
            f"{expected[:12]}) than this model (fingerprint {found[:12]}); put it on the one that it was trained on"
        )


def _with_head(module: GPT | Classifier, adapter: Adapter, directory: Path) -> GPT | Classifier:
    """A copy that shares the base's weights, with the head that the adapter is for."""
    score = next((adapter.tensors[f"{name}.weight"] for name in SCORES if f"{name}.weight" in adapter.tensors), None)
    classifies = score is not None or adapter.task in (TASKS["last"], TASKS["mean"])
    if not classifies:
        if adapter.task is not None and not isinstance(module, GPT):
            raise InputError(f"{directory}: the adapter is of a language model, and this model is a classifier")
        return sharing_copy(module)
    known = adapter.origin.labels or (module.labels if isinstance(module, Classifier) else None)
    of_base: Pooling = module.pooling if isinstance(module, Classifier) and adapter.task != TASKS["last"] else "last"
    pooling = adapter.origin.pooling or of_base
    if adapter.task == TASKS["mean"] and pooling != "mean":
        raise InputError(f"{directory}: the adapter labels tokens, not texts, which is not supported")
    if score is None:
        if not isinstance(module, Classifier):
            raise InputError(f"{directory}: the adapter is of a classifier without its score; load that classifier")
        return sharing_copy(module)
    if len(score) < 2:  # which `transformers` takes for a regression
        raise InputError(f"{directory}: the adapter's score has {len(score)} label; a classifier has two or more")
    labels = known if known is not None and len(known) == len(score) else [f"LABEL_{i}" for i in range(len(score))]
    is_causal = module.config.is_causal if adapter.origin.is_causal is None else adapter.origin.is_causal
    with torch.device("meta"), Unfilled():
        classifier = Classifier(replace(module.config, is_causal=is_causal), labels, pooling)
    shared = {name: p for name, p in module.state_dict().items() if not name.startswith(("head.", "score."))}
    zeros = {f"score.{name}": module.embed.weight.new_zeros(p.shape) for name, p in classifier.score.named_parameters()}
    classifier.load_state_dict({**shared, **zeros}, assign=True)
    return classifier


@torch.no_grad()
def _fill(module: TextModel, adapter: Adapter, directory: Path) -> None:
    """Put the adapter's layers on the module, and its score into it, once every tensor is found to fit."""
    layers, layout = linear_layers(module), layout_of(module)
    names = full_names(layout, adapter.tensors)
    own = dict(module.named_parameters())
    scores = {their_name(layout, name): p for name, p in own.items() if name.startswith("score.")}
    adapted: dict[str, dict[str, Tensor]] = {}
    for name, there in names.items():
        match = ADAPTED.fullmatch(name)
        if match is None and name in scores:
            _check_shape(directory, there, adapter.tensors[there], scores[name].shape)
        elif match is None or match["layer"] not in layers:
            raise InputError(
                f"{directory}: tensor {PREFIX + there!r} belongs to no linear layer of this model's blocks; the "
                "adapter is of another base, or adapts what is not supported"
            )
        else:
            adapted.setdefault(match["layer"], {})[match["part"]] = adapter.tensors[there]
            linears = [_linear(module, ours) for ours in layers[match["layer"]]]
            width = sum(linear.out_features for linear in linears)
            wanted = {"A": (adapter.rank, linears[0].in_features), "B": (width, adapter.rank)}
            _check_shape(directory, there, adapter.tensors[there], wanted[match["part"]])
    if half := next((layer for layer, parts in adapted.items() if len(parts) == 1), None):
        raise InputError(f"{directory}: {half} has one of lora_A and lora_B; the file is incomplete, save it again")
    if not adapted:
        raise InputError(f"{directory}: the adapter adapts no layer; save it again")
    if (given := scores.keys() & names.keys()) and (lost := sorted(scores.keys() - given)):
        raise InputError(f"{directory}: tensor {PREFIX + lost[0]!r} is missing; the file is incomplete, save it again")
    add_adapter(module, [layers[their] for their in adapted], adapter.rank, adapter.scale)
    exchanged = adapted_layers(module)
    for their, parts in adapted.items():
        own_layers = [exchanged[name] for name in layers[their]]
        own_layers[0].lora_A.copy_(parts["A"])
        for layer, part in zip(own_layers, parts["B"].split([x.out_features for x in own_layers]), strict=True):
            layer.lora_B.copy_(part)
    for name in given:  # the classifier's own: `_with_head` has made it
        scores[name].copy_(adapter.tensors[names[name]])


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _check_shape(directory: Path, name: str, tensor: Tensor, wanted: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(wanted):
        raise InputError(
            f"{directory}: tensor {PREFIX + name!r} has shape {tuple(tensor.shape)} and this model needs "
            f"{tuple(wanted)}; the adapter is of another base, or {WEIGHTS} is not that of {CONFIG}"
        )
