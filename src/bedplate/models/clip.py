"""CLIP: texts and images as vectors of one space (arXiv 2103.00020); SigLIP's form beside it (2303.15343)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.errors import InputError
from bedplate.models.gpt import GPTConfig, TextModel
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS

TextPooling = Literal["eos", "mean"]
FAMILY = "clip"  # of a text tower as CLIP has it
OLD_EOS = 2  # what the config files of the first checkpoints call the end token, whatever their tokenizer does
SCALE, MAX_SCALE = math.log(1 / 0.07), math.log(100)  # arXiv 2103.00020, section 2.5
SIGLIP_SCALE, SIGLIP_BIAS = math.log(10), -10.0  # arXiv 2303.15343, section 3.2


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """The shape of a CLIP.

    Attributes:
        text, vision: the towers; what stands for an image is `vision.pooling`.
        projection_dim: P, the size of the space that both share.
        eos_token_id: the token that ends a text; a text's tokens count up to and including its first.
        text_pooling: what stands for a text: the final state of its end token ("eos"), or the mean of all ("mean").
        has_logit_bias: whether logits have a bias, as SigLIP's loss needs.
    """

    text: GPTConfig
    vision: VisionConfig
    projection_dim: int
    eos_token_id: int
    text_pooling: TextPooling = "eos"
    has_logit_bias: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eos_token_id < self.text.vocab_size:
            raise InputError(f"eos_token_id={self.eos_token_id} is no token of a vocabulary of {self.text.vocab_size}")

    @property
    def ends_at_highest(self) -> bool:
        """The rule of the first checkpoints, whose config has eos_token_id=2: the end token is the highest id."""
        return self.text.family == FAMILY and self.eos_token_id == OLD_EOS

    @property
    def is_standard(self) -> bool:
        """Whether it is a CLIP that `transformers` knows."""
        text = self.text
        known = GPTConfig(
            FAMILY, text.vocab_size, text.max_position_embeddings, text.tie_word_embeddings, _standard(text.trunk)
        )
        return (
            (text, self.text_pooling, self.has_logit_bias) == (known, "eos", False)
            and text.trunk.hidden_size % text.trunk.num_attention_heads == 0
            and is_clip_vision(self.vision)
        )

    @staticmethod
    def standard(
        text: Mapping[str, Any],
        vision: Mapping[str, Any],
        *,
        vocab_size: int,
        max_position_embeddings: int,
        image_size: int,
        patch_size: int,
        projection_dim: int,
        eos_token_id: int,
    ) -> ClipConfig:
        """A CLIP that `transformers` knows; `text` and `vision` give the sizes of the trunks, see `clip_trunk`."""
        return ClipConfig(
            GPTConfig(FAMILY, vocab_size, max_position_embeddings, False, clip_trunk(**text)),
            VisionConfig((image_size,) * 2, patch_size, clip_trunk(**vision), patch_bias=False, pre_norm=True),
            projection_dim,
            eos_token_id,
        )


def clip_trunk(
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int | None = None,
    **options: Any,
) -> TrunkConfig:
    """The trunk of either of CLIP's towers; `options` are other values of `TrunkConfig` than CLIP's own."""
    d, heads = hidden_size, num_attention_heads
    values = PRESETS[FAMILY] | options
    return TrunkConfig(d, num_hidden_layers, heads, heads, d // heads, intermediate_size or 4 * d, **values)


def _standard(trunk: TrunkConfig) -> TrunkConfig:
    """The trunk of CLIP of the same sizes: equal to it where it is one."""
    return clip_trunk(
        trunk.hidden_size,
        trunk.num_hidden_layers,
        trunk.num_attention_heads,
        trunk.intermediate_size,
        norm_eps=trunk.norm_eps,
        activation=trunk.activation,
        dropout=trunk.dropout,
    )


def is_clip_vision(vision: VisionConfig) -> bool:
    """Whether it is an image tower of CLIP that `transformers` knows."""
    size = (vision.image_size[0],) * 2
    trunk, channels = _standard(vision.trunk), vision.num_channels
    known = VisionConfig(size, vision.patch_size, trunk, channels, patch_bias=False, pre_norm=True)
    return vision == known and trunk.hidden_size % trunk.num_attention_heads == 0


class Clip(nn.Module):
    """A tower of texts and one of images, each with a projection into the space that they share.

    Attributes:
        logit_scale: the logarithm of what cosines are multiplied by, in use at most 100.
        logit_bias: what is added to them; None but for SigLIP.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.text = TextModel(config.text)
        self.vision = VisionModel(config.vision)
        self.text_projection = nn.Linear(config.text.trunk.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = nn.Linear(config.vision.trunk.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(SIGLIP_SCALE if config.has_logit_bias else SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS)) if config.has_logit_bias else None

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the towers; scale and bias may have a finer one."""
        return self.visual_projection.weight.dtype

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Logits `(B_images, B_texts)` fp32 of normalised pixels `(B_images, C, H, W)` and of `ids (B_texts, L)`."""
        return self.logits(self.image_features(pixels), self.text_features(ids))

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits `(B_images, B_texts)` fp32 of features `(B_images, P)` and `(B_texts, P)` of any length."""
        cosines = F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
        scaled = cosines * self.scale()
        return scaled if self.logit_bias is None else scaled + self.logit_bias.float()

    def scale(self) -> Tensor:
        """What cosines are multiplied by, at most 100.

        Beyond that, too, the parameter has its gradient, or it could not come back from one step too far.
        """
        s = self.logit_scale.float()
        return (s + (s.clamp(max=MAX_SCALE) - s).detach()).exp()

    def image_features(self, pixels: Tensor) -> Tensor:
        """Images in the shared space `(B, P)`, not normalised, of normalised pixels `(B, C, H, W)`."""
        return self.visual_projection(self.vision.pooled(pixels))

    def text_features(self, ids: Tensor) -> Tensor:
        """Texts in the shared space `(B, P)`, not normalised, of `ids (B, L)`; what follows an end token is padding."""
        ends = self.ends(ids)
        if self.config.text_pooling == "eos":
            # What stands behind a causal tower's end token it does not see: no mask is needed.
            valid = None if self.config.text.is_causal else self._valid(ids, ends)
            return self.text_projection(self.text.hidden(ids, valid=valid, at=ends)[:, 0])
        valid = self._valid(ids, ends)
        hidden = self.text.hidden(ids, valid=valid, right_padded=True)
        kept = valid[..., None].to(hidden.dtype)
        return self.text_projection((hidden * kept).sum(1) / kept.sum(1))

    def ends(self, ids: Tensor) -> Tensor:
        """Where each text of `ids (B, L)` ends, `(B,)`: at its first end token; without one at its last token."""
        if self.config.ends_at_highest:
            return ids.argmax(1)
        is_end = ids == self.config.eos_token_id
        is_end[:, -1] = True
        return is_end.int().argmax(1)

    @staticmethod
    def _valid(ids: Tensor, ends: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]

    def flops_per_pair(self, length: int) -> int:
        """Training FLOPs of an image and a text of `length` tokens, forward and backward, without the projections."""
        return self.vision.flops_per_image() + length * self.text.flops_per_token(length)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fresh weights, a pure function of the seed; see `initial_weights`."""
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def initial_weights(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights by name: the towers' own, except outputs into the residual stream, and projections normal with
        1 / sqrt(fan in).

        Towers whose blocks begin as the identity would tell one image, or one text, from another by nothing: all logits
        would be equal, and a contrastive loss has no gradient there. So outputs begin as normal with
        1 / sqrt(2 L fan in), as in the original.
        """
        generator = torch.Generator().manual_seed(seed)
        for tower in ("text", "vision"):
            module: TextModel | VisionModel = getattr(self, tower)
            depth = module.config.trunk.num_hidden_layers
            for name, value in module.initial_weights(seed):
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    value = torch.randn(value.shape, generator=generator) / math.sqrt(2 * depth * value.shape[1])
                yield f"{tower}.{name}", value
        yield from self._initial_heads(generator)

    def _initial_heads(self, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        for name in ("text_projection.weight", "visual_projection.weight"):
            shape = self.get_parameter(name).shape
            yield name, torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        yield "logit_scale", torch.tensor(SCALE if self.logit_bias is None else SIGLIP_SCALE)
        if self.logit_bias is not None:
            yield "logit_bias", torch.tensor(SIGLIP_BIAS)

    @staticmethod
    @torch.no_grad()
    def of(
        text: TextModel,
        vision: VisionModel,
        projection_dim: int,
        *,
        eos_token_id: int,
        text_pooling: TextPooling = "eos",
        has_logit_bias: bool = False,
        seed: int = 0,
    ) -> Clip:
        """A CLIP with copies of towers that were trained before, without their heads, and with fresh projections.

        With `text_pooling="mean"` every token sees all of its text, also in what was a causal language model.
        """
        of_text = replace(text.config, is_causal=False) if text_pooling == "mean" else text.config
        config = ClipConfig(of_text, vision.config, projection_dim, eos_token_id, text_pooling, has_logit_bias)
        module = Clip(config)
        for tower, base in ((module.text, text), (module.vision, vision)):
            weights = base.state_dict()
            tower.load_state_dict({name: weights[name] for name in tower.state_dict()})
        for name, value in module._initial_heads(torch.Generator().manual_seed(seed)):
            module.get_parameter(name).copy_(value)
        return module.to(vision.device)
