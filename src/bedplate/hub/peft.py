"""Adapter directories in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`.

What PEFT has no place for (the base's fingerprint, a classifier's labels) is in the metadata of the safetensors file,
which it does not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bedplate.errors import InputError
from bedplate.hub.directory import FLOATS, Weights
from bedplate.hub.folder import read_json, write_atomic, write_json
from bedplate.models.classifier import Pooling
from bedplate.nn.lora import scale_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of all names: PEFT's wrapper, and in it the model
OURS = "bedplate"  # the key of our metadata
TASKS: dict[Pooling | None, str] = {None: "CAUSAL_LM", "last": "SEQ_CLS", "mean": "TOKEN_CLS"}
SCORES = ("classifier", "score")  # what the classes of `transformers` call it; PEFT writes both

# Where these keys are set, the adapter computes the same: they steer training, or repeat what the tensors' names say.
NEUTRAL = {
    *("peft_type", "task_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "runtime_config", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("megatron_core", "eva_config", "qalora_group_size", "init_lora_weights", "bias"),
}
# Other ways to begin, such as PiSSA, also change the base.
BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


class Origin(BaseModel):
    """What an adapter remembers of the model that it was trained on, and of the classifier that it made of it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    base: str | None = None  # as the recipe named it
    fingerprint: str | None = None
    labels: list[str] | None = None
    pooling: Pooling | None = None
    is_causal: bool | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it lies on the disk; `tensors` are named as PEFT names them, without `PREFIX`."""

    rank: int
    alpha: float
    targets: list[str]
    task: str | None  # CAUSAL_LM, SEQ_CLS, TOKEN_CLS; None: not said
    tensors: Mapping[str, Tensor]
    base: str | None = None  # base_model_name_or_path
    revision: str | None = None
    dropout: float = 0.0
    rank_stabilized: bool = False
    conv1d: bool = False  # whether the layers keep their weights (in, out), as GPT-2's do
    origin: Origin = field(default_factory=Origin)

    @property
    def scale(self) -> float:
        return scale_of(self.rank, self.alpha, rank_stabilized=self.rank_stabilized)


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def write_adapter(directory: Path, adapter: Adapter) -> None:
    """Write both files of an adapter directory, each whole or not at all; the configuration comes last.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    values = {
        "peft_type": "LORA",
        "task_type": adapter.task,
        "base_model_name_or_path": adapter.base,
        "revision": adapter.revision,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": int(adapter.alpha) if float(adapter.alpha).is_integer() else adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rank_stabilized,
        "target_modules": adapter.targets,
        "modules_to_save": None if adapter.task == TASKS[None] else list(SCORES),
        "fan_in_fan_out": adapter.conv1d,
        "bias": "none",
        "init_lora_weights": True,
    }
    # The only key: safetensors writes several in random order, and a resumed run must end with the same bytes.
    metadata = {OURS: adapter.origin.model_dump_json()}
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / WEIGHTS, lambda path: save_file(tensors, path, metadata=metadata))
    write_json(directory / CONFIG, values)


def read_adapter(directory: Path) -> Adapter:
    """The adapter in a directory.

    Raises:
        InputError: a file is missing or damaged, or the adapter needs what the trunk does not have.
    """
    file = directory / CONFIG
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder; give an adapter directory")
    if not file.is_file():
        raise InputError(f"{directory}: no {CONFIG}; give the folder of an adapter, not of a model")
    values = read_json(file)
    _check_supported(values, file)
    if not (directory / WEIGHTS).is_file():
        more = "; pickle files are not read" if (directory / "adapter_model.bin").is_file() else ""
        raise InputError(f"{directory}: no {WEIGHTS}{more}; save the adapter again with peft's save_pretrained")
    weights = Weights([directory / WEIGHTS])
    for name in weights:
        if not name.startswith(PREFIX):
            raise InputError(f"{directory}: tensor {name!r} is of no adapter; there, names begin with {PREFIX}")
        if (kind := weights.kind(name)) not in FLOATS:
            raise InputError(f"{directory}: tensor {name!r} holds {kind}; supported: {', '.join(FLOATS)}")
    return Adapter(
        rank=int(_number(values, "r", file, int)),
        alpha=_number(values, "lora_alpha", file, float, int),
        targets=[],
        task=values.get("task_type"),
        tensors={name.removeprefix(PREFIX): weights[name] for name in weights},
        base=values.get("base_model_name_or_path"),
        revision=values.get("revision"),
        rank_stabilized=bool(values.get("use_rslora")),
        origin=_origin(directory / WEIGHTS),
    )


def _number(values: Mapping[str, Any], key: str, file: Path, *kinds: type) -> float:
    value: Any = values.get(key)
    if type(value) not in kinds or not value > 0:
        what = "a number" if float in kinds else "a whole number"
        raise InputError(f"{file}: {key} must be {what} above 0, got {value!r}")
    return float(value)


def _check_supported(values: Mapping[str, Any], file: Path) -> None:
    """Refuse what would make the adapter compute something else than `LoRALinear` does.

    Keys that PEFT will have in the future are off where they are null, false or empty, as those of today.
    """

    def refuse(what: str) -> InputError:
        return InputError(
            f"{file}: {what} is not supported; merge the adapter into its base with peft (merge_and_unload), and load "
            "the model that this gives"
        )

    if (kind := values.get("peft_type")) != "LORA":
        raise refuse(f"peft_type={kind!r}")
    if (task := values.get("task_type")) not in (None, *TASKS.values()):
        raise refuse(f"task_type={task!r}")
    if values.get("use_dora"):
        raise refuse("DoRA (use_dora=true)")
    if (bias := values.get("bias", "none")) != "none":
        raise refuse(f"bias={bias!r}")
    if (begun := values.get("init_lora_weights")) not in BEGINNINGS:
        raise refuse(f"init_lora_weights={begun!r}, which changes the base,")
    if others := sorted(set(values.get("modules_to_save") or ()) - set(SCORES)):
        raise refuse(f"modules_to_save={others[0]!r}")
    for key, value in values.items():
        if key not in NEUTRAL and value:
            raise refuse(f"{key}={json.dumps(value)[:60]}")


def _origin(file: Path) -> Origin:
    metadata = safe_open(file, framework="pt").metadata() or {}
    try:
        return Origin.model_validate_json(metadata.get(OURS, "{}"))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or OURS
        raise InputError(f"{file}: {where} in its metadata is malformed ({fault['msg']}); save it again") from None
