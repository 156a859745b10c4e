"""What the config files of all families share: fields, their checks, activations and rotary positions."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from bedplate.nn.rotary import RopeConfig

Positive = Annotated[int, Field(gt=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]

# Names on the left are all that `transformers` has for the function on the right; the first of each is the one written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}

# What each rotary type reads, beside its name and rope_theta.
ROPE_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
    ),
}
ROPE_REQUIRED = ("factor", "low_freq_factor", "high_freq_factor")


def supported(*values: Any) -> AfterValidator:
    """A field that may hold only these values; `sentence` words the error."""

    def check(value: Any) -> Any:
        if value not in values:
            raise ValueError(f"supported: {', '.join(map(str, values))}")
        return value

    return AfterValidator(check)


Activation = Annotated[str, supported(*ACTIVATIONS)]
Off = Annotated[bool, supported(False)]
On = Annotated[bool, supported(True)]


class File(BaseModel):
    """Keys without a field here do not change what the model computes."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    architecture: ClassVar[str]

    vocab_size: Positive
    is_causal: bool = True  # False: `transformers` (from 5.0) lets every token see all
    quantization_config: Annotated[dict[str, Any] | None, supported(None)] = None


class RopeFile(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    rope_type: Annotated[str, supported(*ROPE_KEYS)] = Field(
        "default", validation_alias=AliasChoices("rope_type", "type")
    )
    rope_theta: Rate
    factor: Rate | None = None
    low_freq_factor: Rate | None = None
    high_freq_factor: Rate | None = None
    original_max_position_embeddings: Positive | None = None
    beta_fast: Rate | None = None
    beta_slow: Rate | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool | None = None
    partial_rotary_factor: Annotated[float | None, supported(1.0, None)] = None
    # One dictionary for each kind of layer, which no family here has.
    full_attention: Annotated[dict[str, Any] | None, supported(None)] = None
    sliding_attention: Annotated[dict[str, Any] | None, supported(None)] = None

    def config(self, context: int) -> RopeConfig:
        """Absent keys are filled as in `modeling_rope_utils`; `context` is the model's longest."""
        keys = ROPE_KEYS[self.rope_type]
        values = self.model_dump(include={"rope_type", "rope_theta", *keys}, exclude_none=True)
        if "original_max_position_embeddings" in keys:
            original = values.setdefault("original_max_position_embeddings", context)
            if self.rope_type == "yarn":
                values.setdefault("factor", context / original)
        for key in ROPE_REQUIRED:
            if key in keys and key not in values:
                raise ValueError(f"rotary positions of type {self.rope_type!r} need {key}, which is missing")
        return RopeConfig(**values)


def rope_values(rope: RopeConfig) -> dict[str, Any]:
    """Both spellings: `rope_parameters` for transformers 5, `rope_theta` and `rope_scaling` for older readers."""
    used = {key: getattr(rope, key) for key in ROPE_KEYS[rope.rope_type]}
    scaling = {"rope_type": rope.rope_type, **{key: value for key, value in used.items() if value is not None}}
    values = {"rope_theta": rope.rope_theta, "rope_parameters": scaling | {"rope_theta": rope.rope_theta}}
    return values if rope.rope_type == "default" else values | {"rope_scaling": scaling}


def activation_name(activation: str) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)


def differences(wanted: Any, got: Any, prefix: str = "") -> list[str]:
    """`name=value` of each field of `wanted` that `got` does not have."""
    found = []
    for field in fields(wanted):
        a, b = getattr(wanted, field.name), getattr(got, field.name)
        if is_dataclass(a) and is_dataclass(b):
            found += differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            found.append(f"{prefix}{field.name}={a!r}")
    return found


def sentence(error: ValidationError) -> str:
    """The first fault, with its key, its value and what would be right."""
    fault = error.errors()[0]
    key = ".".join(map(str, fault["loc"]))
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if fault["type"] == "value_error":
        return f"{key}={fault['input']!r} is not supported; {message}"
    return f"{key}={fault['input']!r}: {message[0].lower()}{message[1:]}"
