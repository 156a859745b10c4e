"""`config.json` of CLIP: as `transformers` has it, and our free shapes as `bedplate_clip`.

Absent keys mean what they mean in transformers 5. A free shape names what its towers are: each has the values of the
config file that it would have alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bedplate.errors import InputError
from bedplate.hub.config import config_from_hf, config_to_hf
from bedplate.hub.config_file import (
    ACTIVATIONS,
    Activation,
    Positive,
    Rate,
    Share,
    activation_name,
    differences,
    sentence,
    supported,
)
from bedplate.hub.config_vision import OWN, vision_config_from_hf, vision_config_to_hf
from bedplate.models.clip import FAMILY, ClipConfig, TextPooling, clip_trunk, is_clip_vision
from bedplate.models.gpt import GPTConfig
from bedplate.models.vit import VisionConfig
from bedplate.nn.config import TrunkConfig

FREE = f"{OWN}clip"
TEXT, VISION = "clip_text_model", "clip_vision_model"


class _Tower(BaseModel):
    """Keys without a field here do not change what the model computes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: Rate = 1e-5
    attention_dropout: Share = 0.0
    quantization_config: Annotated[dict[str, Any] | None, supported(None)] = None

    def trunk(self) -> TrunkConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        return clip_trunk(
            self.hidden_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.intermediate_size,
            norm_eps=self.layer_norm_eps,
            activation=ACTIVATIONS[self.hidden_act],
            # `transformers` has it in attention only, our trunk on residual branches too.
            dropout=self.attention_dropout,
        )


class _TextFile(_Tower):
    vocab_size: Positive = 49408
    hidden_size: Positive = 512
    intermediate_size: Positive = 2048
    num_attention_heads: Positive = 8
    max_position_embeddings: Positive = 77
    eos_token_id: Annotated[int, Field(ge=0)] = 49407
    is_causal: bool = True

    def config(self) -> GPTConfig:
        return GPTConfig(
            FAMILY, self.vocab_size, self.max_position_embeddings, False, self.trunk(), is_causal=self.is_causal
        )


class _VisionFile(_Tower):
    hidden_size: Positive = 768
    intermediate_size: Positive = 3072
    num_attention_heads: Positive = 12
    num_channels: Positive = 3
    image_size: Positive = 224
    patch_size: Positive = 32

    def config(self) -> VisionConfig:
        size = (self.image_size, self.image_size)
        return VisionConfig(size, self.patch_size, self.trunk(), self.num_channels, patch_bias=False, pre_norm=True)


class _ClipFile(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    text_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    text_config_dict: dict[str, Any] | None = None  # of old files; whole where it is there, and then it counts
    vision_config_dict: dict[str, Any] | None = None
    projection_dim: Positive = 512
    quantization_config: Annotated[dict[str, Any] | None, supported(None)] = None

    def config(self, where: str) -> ClipConfig:
        text, vision = (
            (given if old is None else old) or {}
            for given, old in ((self.text_config, self.text_config_dict), (self.vision_config, self.vision_config_dict))
        )
        for tower, kind in ((text, TEXT), (vision, VISION)):
            if (given := tower.get("model_type", kind)) != kind:
                raise ValueError(f"a tower of model_type={given!r} is none of {FAMILY}, but of {FREE}")
        whole = _TextFile.model_validate(text)
        return ClipConfig(
            whole.config(), _VisionFile.model_validate(vision).config(), self.projection_dim, whole.eos_token_id
        )


class _FreeFile(_ClipFile):
    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    eos_token_id: Annotated[int, Field(ge=0)]
    text_pooling: TextPooling
    has_logit_bias: bool = False

    def config(self, where: str) -> ClipConfig:
        text, vision = self.text_config, self.vision_config
        return ClipConfig(
            _TextFile.model_validate(text).config()
            if text.get("model_type") == TEXT
            else config_from_hf(text, f"{where}: text_config"),
            _VisionFile.model_validate(vision).config()
            if vision.get("model_type") == VISION
            else _vision(vision, f"{where}: vision_config"),
            self.projection_dim,
            self.eos_token_id,
            self.text_pooling,
            self.has_logit_bias,
        )


def _vision(values: Mapping[str, Any], where: str) -> VisionConfig:
    config = vision_config_from_hf(values, where)
    if not isinstance(config, VisionConfig):
        raise InputError(f"{where}: model_type={values['model_type']!r} is no encoder of pictures; supported: vit")
    return config


def clip_config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> ClipConfig:
    """The config of a config file's values; `where` names the file in errors.

    Raises:
        InputError: an unknown model_type, a value of the wrong type, or a variant that our module does not have.
    """
    kind = values.get("model_type")
    if kind not in (FAMILY, FREE):
        raise InputError(f"{where}: model_type={kind!r} is not supported; supported: {FAMILY}, {FREE}")
    try:
        config = (_ClipFile if kind == FAMILY else _FreeFile).model_validate(dict(values)).config(where)
    except ValidationError as error:
        raise InputError(f"{where}: {sentence(error)}") from None
    except InputError as error:
        raise error if str(error).startswith(where) else InputError(f"{where}: {error}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if config.is_standard != (kind == FAMILY):
        raise InputError(
            f"{where}: model_type={kind!r} does not go with what its towers are; "
            f"use {FAMILY if config.is_standard else FREE}"
        )
    return config


def clip_config_to_hf(config: ClipConfig) -> dict[str, Any]:
    """The values of the config file from which `transformers` builds the same model, where it knows it.

    Raises:
        InputError: a config file has no key for what the model is.
    """
    standard = config.is_standard
    values: dict[str, Any] = {
        "architectures": ["CLIPModel" if standard else "Clip"],
        "model_type": FAMILY if standard else FREE,
        "projection_dim": config.projection_dim,
        "text_config": _text_values(config),
        "vision_config": _vision_values(config),
    }
    if not standard:
        values |= {
            "eos_token_id": config.eos_token_id,
            "text_pooling": config.text_pooling,
            "has_logit_bias": config.has_logit_bias,
        }
    # Reading back is the proof that nothing was lost.
    if lost := differences(config, clip_config_from_hf(values)):
        raise InputError(f"a {values['model_type']} directory cannot hold a model with {', '.join(lost)}")
    return values


def _text_values(config: ClipConfig) -> dict[str, Any]:
    text = config.text
    if text.family != FAMILY:
        return config_to_hf(text)
    return {
        "model_type": TEXT,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        **_trunk_values(text.trunk),
        "projection_dim": config.projection_dim,
        "eos_token_id": config.eos_token_id,
        **({} if text.is_causal else {"is_causal": False}),
    }


def _vision_values(config: ClipConfig) -> dict[str, Any]:
    vision = config.vision
    if not is_clip_vision(vision):
        return vision_config_to_hf(vision)
    return {
        "model_type": VISION,
        "image_size": vision.image_size[0],
        "patch_size": vision.patch_size,
        "num_channels": vision.num_channels,
        **_trunk_values(vision.trunk),
        "projection_dim": config.projection_dim,
    }


def _trunk_values(trunk: TrunkConfig) -> dict[str, Any]:
    return {
        "hidden_size": trunk.hidden_size,
        "intermediate_size": trunk.intermediate_size,
        "num_hidden_layers": trunk.num_hidden_layers,
        "num_attention_heads": trunk.num_attention_heads,
        "hidden_act": activation_name(trunk.activation),
        "layer_norm_eps": trunk.norm_eps,
        "attention_dropout": trunk.dropout,
    }
