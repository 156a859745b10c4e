"""`config.json` of image models: ViT and ViTMAE as `transformers` has them, and our departures from them.

Absent keys mean what they mean in transformers 5. A departure (a convolutional stem, the mean of the patches, a MAE of
images that are not square) has a model_type of its own, so that `transformers` refuses what it would compute wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bedplate.errors import InputError
from bedplate.hub.classifier import labels_from_hf
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
from bedplate.models.mae import MAEConfig
from bedplate.models.vit import ImagePooling, VisionConfig
from bedplate.nn.config import TrunkConfig
from bedplate.nn.embed import Stem
from bedplate.nn.presets import PRESETS

CLASSIFIER = "ForImageClassification"


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _square(value: Any) -> Any:
    if not isinstance(value, int):
        raise ValueError("supported: one number, the side of a square patch")
    return value


class ViTFile(BaseModel):
    """Keys without a field here do not change what the model computes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Share = 0.0
    attention_probs_dropout_prob: Share = 0.0
    layer_norm_eps: Rate = 1e-12
    image_size: Annotated[tuple[Positive, Positive], BeforeValidator(_pair)] = (224, 224)
    patch_size: Annotated[Positive, BeforeValidator(_square)] = 16
    num_channels: Positive = 3
    qkv_bias: bool = True
    head_dim: Annotated[int | None, supported(None)] = None
    quantization_config: Annotated[dict[str, Any] | None, supported(None)] = None
    stem: Stem = "patch"
    pooling: ImagePooling = "cls"
    patch_bias: bool = True
    pre_norm: bool = False

    def config(self) -> VisionConfig | MAEConfig:
        return self.encoder()

    def encoder(self) -> VisionConfig:
        trunk = self.trunk(self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.intermediate_size)
        how = self.stem, self.pooling, self.patch_bias, self.pre_norm
        return VisionConfig(self.image_size, self.patch_size, trunk, self.num_channels, *how)

    def trunk(self, width: int, layers: int, heads: int, inner: int) -> TrunkConfig:
        """One of these sizes, and with what the file says of all its trunks."""
        if width % heads:
            raise ValueError(f"a hidden size of {width} is not a multiple of {heads} attention heads")
        options = {
            "norm_eps": self.layer_norm_eps,
            "activation": ACTIVATIONS[self.hidden_act],
            "attention_bias": self.qkv_bias,
            # The trunk has one dropout. Where the file has two, the larger: they act in training only.
            "dropout": max(self.hidden_dropout_prob, self.attention_probs_dropout_prob),
        }
        return TrunkConfig(width, layers, heads, heads, width // heads, inner, **PRESETS["vit"] | options)


class MAEFile(ViTFile):
    """The same with a decoder, whose default sizes are those of ViTMAE."""

    architectures: list[str] | None = None
    decoder_hidden_size: Positive = 512
    decoder_num_hidden_layers: Positive = 8
    decoder_num_attention_heads: Positive = 16
    decoder_intermediate_size: Positive = 2048
    mask_ratio: Annotated[float, Field(ge=0, le=1)] = 0.75
    norm_pix_loss: bool = False

    def config(self) -> VisionConfig | MAEConfig:
        if self.architectures == ["ViTMAEModel"]:  # the encoder alone: its file names a decoder that is not there
            return self.encoder()
        decoder = self.trunk(
            self.decoder_hidden_size,
            self.decoder_num_hidden_layers,
            self.decoder_num_attention_heads,
            self.decoder_intermediate_size,
        )
        return MAEConfig(self.encoder(), decoder, self.mask_ratio, self.norm_pix_loss)


OWN = "bedplate_"  # begins the model_type of what `transformers` does not know
FILES: dict[str, type[ViTFile]] = {"vit": ViTFile, "vit_mae": MAEFile, f"{OWN}vit": ViTFile, f"{OWN}vit_mae": MAEFile}


def vision_config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> VisionConfig | MAEConfig:
    """The config of a config file's values; `where` names the file in errors.

    Raises:
        InputError: an unknown model_type, a value of the wrong type, or a variant that our modules do not have.
    """
    kind = values.get("model_type")
    if kind not in FILES:
        raise InputError(f"{where}: model_type={kind!r} is not supported; supported: {', '.join(FILES)}")
    try:
        config = FILES[kind].model_validate(dict(values)).config()
    except ValidationError as error:
        raise InputError(f"{where}: {sentence(error)}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if config.is_standard == kind.startswith(OWN):
        right = kind.removeprefix(OWN) if config.is_standard else OWN + kind
        raise InputError(f"{where}: model_type={kind!r} does not go with its stem, pooling and image_size; use {right}")
    return config


def vision_labels_from_hf(values: Mapping[str, Any], where: str = "config.json") -> list[str] | None:
    """The labels of a classifier in the order of its scores; None for a model that is none.

    Raises:
        InputError: see `hub.classifier.labels_from_hf`.
    """
    is_classifier = any(str(name).endswith(CLASSIFIER) for name in values.get("architectures") or ())
    return labels_from_hf(values, where) if is_classifier else None


def vision_config_to_hf(config: VisionConfig | MAEConfig, labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The values of the config file from which `transformers` builds the same model, where it knows it.

    Args:
        labels: of a classifier, in the order of its scores.

    Raises:
        InputError: a config file has no key for what the model is.
    """
    is_mae = isinstance(config, MAEConfig)
    encoder = config.encoder if isinstance(config, MAEConfig) else config
    c, (height, width) = encoder.trunk, encoder.image_size
    architecture = "ViTMAEForPreTraining" if is_mae else "ViTModel" if labels is None else f"ViT{CLASSIFIER}"
    values: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": ("" if config.is_standard else OWN) + ("vit_mae" if is_mae else "vit"),
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "intermediate_size": c.intermediate_size,
        "hidden_act": activation_name(c.activation),
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "layer_norm_eps": c.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": encoder.patch_size,
        "num_channels": encoder.num_channels,
        "qkv_bias": c.attention_bias,
    }
    if isinstance(config, MAEConfig):
        values |= {
            "decoder_hidden_size": config.decoder.hidden_size,
            "decoder_num_hidden_layers": config.decoder.num_hidden_layers,
            "decoder_num_attention_heads": config.decoder.num_attention_heads,
            "decoder_intermediate_size": config.decoder.intermediate_size,
            "mask_ratio": config.mask_ratio,
            "norm_pix_loss": config.norm_pix_loss,
        }
    if not config.is_standard:
        values |= {"stem": encoder.stem, "pooling": encoder.pooling}
        values |= {} if encoder.patch_bias else {"patch_bias": False}
        values |= {"pre_norm": True} if encoder.pre_norm else {}
    if labels is not None:
        values["id2label"] = {str(i): label for i, label in enumerate(labels)}
        values["label2id"] = {label: i for i, label in enumerate(labels)}
    # Reading back is the proof that nothing was lost.
    if lost := differences(config, vision_config_from_hf(values)):
        raise InputError(f"a {values['model_type']} directory cannot hold a model with {', '.join(lost)}")
    return values
