"""What a contrastive run begins with: a CLIP to go on with, towers that were trained before, or fresh ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer

from bedplate.data.tokenizer import end_of_text_id, vocabulary_size
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.clip_texts import end_id
from bedplate.hub.image_model import ImageModel
from bedplate.hub.load import load
from bedplate.hub.model import Model
from bedplate.hub.processor import ImageProcessor
from bedplate.hub.vision_directory import encoder_of
from bedplate.models.clip import Clip, ClipConfig, clip_trunk
from bedplate.models.gpt import GPTConfig, TextModel
from bedplate.models.vit import VisionConfig, VisionModel
from bedplate.recipe.contrast import ContrastRecipe, ImageTowerRecipe

SIDE = 64  # pixels of a picture, where neither the recipe nor a base says


CONTEXT = 32  # tokens of a text at most, where neither recipe nor base says


@dataclass(frozen=True)
class Towers:
    """What was there before; None of each that is not."""

    clip: Clip | None = None
    text: TextModel | None = None
    image: VisionModel | None = None
    tokenizer: Tokenizer | None = None
    end: int | None = None
    processor: ImageProcessor | None = None

    @property
    def size(self) -> int:
        """Side of the pictures that are read, as long as nobody says another."""
        return SIDE if self.processor is None else self.processor.size[0]

    @property
    def positions(self) -> int | None:
        """Most tokens that a text tower of before can read."""
        text = self.text if self.clip is None else self.clip.text
        return None if text is None else text.config.max_position_embeddings


def make_towers(recipe: ContrastRecipe, device: torch.device) -> Towers:
    """Load the bases that a recipe names.

    Raises:
        InputError: a base that is of another kind.
    """
    if recipe.base is not None:
        whole = load(recipe.base, device=device, dtype="fp32")
        if not isinstance(whole, ClipModel):
            raise InputError(f"{recipe.base}: is no CLIP; give one as base, or single towers as model.text_base")
        tokenizer = whole.need_tokenizer()
        return Towers(
            clip=whole.module, tokenizer=tokenizer, end=end_id(tokenizer, whole.config), processor=whole.processor
        )
    found: dict[str, Any] = {}
    m = recipe.model
    if m.text_base is not None:
        text = load(m.text_base, device=device, dtype="fp32")
        if not isinstance(text, Model) or not isinstance(text.module, TextModel) or text.tokenizer is None:
            raise InputError(f"model.text_base={m.text_base}: is no model of text with a tokenizer; give one")
        text.merge_adapter()  # of a base that is an adapter itself
        end = text.special.eos[0] if text.special.eos else end_of_text_id(text.tokenizer)
        found |= {"text": text.module, "tokenizer": text.tokenizer, "end": end}
    if m.image_base is not None:
        image = load(m.image_base, device=device, dtype="fp32")
        if isinstance(image, ClipModel):
            found |= {"image": image.module.vision, "processor": image.processor}
        elif isinstance(image, ImageModel):
            found |= {"image": encoder_of(image.module), "processor": image.processor}
        else:
            raise InputError(f"model.image_base={m.image_base}: does not read pictures; give a model that does")
    return Towers(**found)


def make_clip(recipe: ContrastRecipe, towers: Towers, tokenizer: Tokenizer, side: int) -> Clip:
    """The network that a recipe describes, with the weights of the towers that were there before."""
    size = (side, side)
    if towers.clip is not None:
        if recipe.objective.loss == "siglip" and towers.clip.logit_bias is None:
            raise InputError(
                f"objective.loss=siglip needs a bias of the logits, which base={recipe.base} has not; use infonce"
            )
        return _resized(towers.clip, size)
    m = recipe.model
    end = end_of_text_id(tokenizer) if towers.end is None else towers.end
    pooling = m.text.pooling or ("eos" if towers.text is None else "mean")
    biased = recipe.objective.loss == "siglip"
    fresh = Clip(
        ClipConfig(
            _text_config(recipe, vocabulary_size(tokenizer)) if towers.text is None else towers.text.config,
            _image_config(m.image, size, m.dropout) if towers.image is None else towers.image.config,
            m.projection_dim,
            end,
            pooling,
            biased,
        )
    )
    fresh.init_weights(recipe.seed)
    if towers.text is None and towers.image is None:
        return fresh
    image = fresh.vision if towers.image is None else towers.image
    if image.config.image_size != size:
        image = image.with_image_size(size)
    return Clip.of(
        towers.text or fresh.text,
        image,
        m.projection_dim,
        eos_token_id=end,
        text_pooling=pooling,
        has_logit_bias=biased,
        seed=recipe.seed,
    )


def _text_config(recipe: ContrastRecipe, vocab_size: int) -> GPTConfig:
    t = recipe.model.text
    trunk = clip_trunk(
        t.hidden_size, t.num_hidden_layers, t.num_attention_heads, t.intermediate_size, dropout=recipe.model.dropout
    )
    return GPTConfig("clip", vocab_size, t.context or CONTEXT, False, trunk, is_causal=t.pooling != "mean")


def _image_config(m: ImageTowerRecipe, size: tuple[int, int], dropout: float) -> VisionConfig:
    trunk = clip_trunk(m.hidden_size, m.num_hidden_layers, m.num_attention_heads, m.intermediate_size, dropout=dropout)
    has_bias = m.stem != "patch"
    return VisionConfig(size, m.patch_size, trunk, stem=m.stem, pooling=m.pooling, patch_bias=has_bias, pre_norm=True)


def _resized(clip: Clip, size: tuple[int, int]) -> Clip:
    """A CLIP that reads pictures of a size, its positions interpolated where it is another."""
    if clip.config.vision.image_size == size:
        return clip
    copy = Clip(replace(clip.config, vision=replace(clip.config.vision, image_size=size)))
    weights = clip.state_dict()
    vision = clip.vision.with_image_size(size).state_dict()
    copy.load_state_dict(weights | {f"vision.{name}": value for name, value in vision.items()})
    return copy.to(clip.device)
