"""`DrawModel`, what `load` returns for a model that draws: both of its networks in one directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.images import Source
from bedplate.data.pair_loader import TextEncoder
from bedplate.data.tokenizer import load_tokenizer, save_tokenizer
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.directory import Unfilled, read_config_values, write_weights
from bedplate.hub.folder import new_folder, write_json
from bedplate.hub.image_tokens_model import (
    ImageTokensModel,
    config_from_values,
    config_to_values,
    fill,
    pictures_of,
    read_card,
)
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.options import check_kinds, taken
from bedplate.hub.processor import FILE, ImageProcessor, read_processor
from bedplate.hub.text import strings
from bedplate.models.dalle import Dalle, DalleConfig, Painter
from bedplate.models.image_tokenizer import ImageTokenizer
from bedplate.nn.config import TrunkConfig
from bedplate.nn.presets import PRESETS, default_intermediate_size
from bedplate.tasks.pixels import as_bytes

MODEL_TYPE = "bedplate_draw"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
BATCH = 64  # images that are drawn at one time, each of them twice where there is guidance
GUIDANCE, TEMPERATURE = 3.0, 1.0
KEEP = 0.5  # share of a picture's rows with which drawings begin


@dataclass
class DrawModel(MultimodalModel):
    """Draws pictures from texts.

    Attributes:
        held_out: names of two parts that training never saw; see `data.combinations`.
    """

    instead_of_text: ClassVar[str] = "draws pictures and writes no text; use draw"

    module: Painter
    processor: ImageProcessor
    tokenizer: Tokenizer
    card: str = ""
    held_out: Sequence[str] = field(default_factory=list)

    @property
    def image_tokens(self) -> ImageTokensModel:
        """The image tokenizer alone."""
        return ImageTokensModel(self.module.image_tokens, self.processor)

    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        n: int = 1,
        seed: int = 0,
        guidance: float = GUIDANCE,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        prefix: Source | None = None,
        keep: float = KEEP,
    ) -> list[Image.Image]:
        """`n` PIL images of each prompt, prompt by prompt.

        An image depends on its prompt, its seed and the settings alone: the k-th of a prompt has the seed `seed + k`.

        Args:
            guidance: how closely the text is followed; 1 is the model as it was trained, see `Dalle.draw`.
            temperature: 0 draws the likeliest code each time; higher is bolder.
            top_k: draw from so many codes only.
            prefix: a picture whose upper rows every drawing begins with.
            keep: the share of its rows that are kept.

        Raises:
            InputError: an empty or too long prompt, what is no picture, or a setting outside of its range.
        """
        texts = strings(prompts, "prompt")
        check_kinds(Integral, n=n, seed=seed, top_k=1 if top_k is None else top_k)
        check_kinds(Real, guidance=guidance, temperature=temperature, keep=keep)
        if n < 1:
            raise InputError(f"n={n}: give 1 or more")
        rows = [text for text in texts for _ in range(n)]
        seeds = [seed + k for _ in texts for k in range(n)]
        kept = None if prefix is None else self._prefix(prefix, keep)
        ids, parts = self._ids(rows), []
        for first in range(0, len(rows), BATCH):
            some = slice(first, first + BATCH)
            codes = self.module.dalle.draw(
                ids[some].to(self.module.device),
                seeds[some],
                guidance=guidance,
                temperature=temperature,
                top_k=top_k,
                prefix=kept,
            )
            parts.append(self._pixels(codes))
        return pictures_of(parts)

    def draw_best(
        self,
        prompts: str | Sequence[str],
        ranker: ClipModel,
        best_of: int,
        *,
        n: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> list[tuple[int, Image.Image]]:
        """`n` (seed, image) of each prompt: of so many drawings each time the one that is nearest to the prompt.

        That is how DALL-E's samples were chosen (arXiv 2102.12092, section 2.6). The k-th of a prompt is one of the
        drawings with the seeds `(seed + k) * best_of` and on, and `draw` gives it again by its own seed.

        Args:
            ranker: a CLIP, whose vectors of prompts (in its templates) and drawings are compared; of a prompt that is
                too long for it the beginning counts.
            options: those of `draw`.

        Raises:
            InputError: as of `draw`, or fewer than one drawing.
        """
        texts = strings(prompts, "prompt")
        check_kinds(Integral, best_of=best_of, n=n, seed=seed)
        for name, value in (("best_of", best_of), ("n", n)):
            if value < 1:
                raise InputError(f"{name}={value}: give 1 or more")
        self._ids(texts)  # an empty prompt is said before the ranker meets it
        wanted, each = ranker.text_vectors(texts, truncate=True), n * best_of
        some, found = max(1, BATCH // each), list[tuple[int, Image.Image]]()
        for first in range(0, len(texts), some):
            part = texts[first : first + some]
            drawn = self.draw(part, n=each, seed=seed * best_of, **options)
            vectors = ranker.embed(drawn).view(len(part), n, best_of, -1)
            nearest = torch.einsum("tnbp,tp->tnb", vectors, wanted[first : first + some]).argmax(2)
            for t, k in product(range(len(part)), range(n)):
                best = k * best_of + int(nearest[t, k])
                found.append((seed * best_of + best, drawn[t * each + best]))
        return found

    @torch.inference_mode()
    def _pixels(self, codes: Tensor) -> Tensor:
        """uint8 `(B, 3, H, W)` on the CPU."""
        return as_bytes(self.module.image_tokens.decode(codes), self.processor.mean, self.processor.std).cpu()

    def _ids(self, texts: Sequence[str]) -> Tensor:
        """Texts as the model reads them `(B, L)`.

        Raises:
            InputError: one is empty or too long.
        """
        c = self.module.dalle.config
        for text in dict.fromkeys(texts):
            if not text.strip():
                raise InputError("the prompt is empty; say what to draw")
            if not self.fits(text):
                room = c.text_length - 1
                raise InputError(f"the prompt {text[:40]!r} has more than the {room} tokens that are read; shorten it")
        return TextEncoder(self.tokenizer, c.text_length, c.end_token_id)([text.strip() for text in texts])

    def fits(self, text: str) -> bool:
        """Whether a text is short enough to be drawn."""
        return len(self.tokenizer.encode(text).ids) < self.module.dalle.config.text_length

    def _prefix(self, picture: Source, keep: float) -> Tensor:
        """The codes `(K,)` of a picture's upper rows."""
        if not 0 < keep <= 1:
            raise InputError(f"keep={keep}: give the share of the picture's rows to keep, above 0 and at most 1")
        codes = self.image_tokens.encode([picture])[0]
        return codes[: max(1, round(keep * len(codes)))].flatten()

    def predict(self, inputs: Any, **options: Any) -> list[dict[str, Any]]:
        """`{"image"}` of each text, in order; options are those of `draw` but `n`."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if other := next((each for each in texts if not isinstance(each, str)), None):
            raise InputError(
                f"{other}: this model draws from texts; beginning with a picture is bedplate draw --prefix"
            )
        known = {"seed": 0, "guidance": GUIDANCE, "temperature": TEMPERATURE, "top_k": None}
        return [{"image": image} for image in self.draw(texts, **taken(options, known, "a model that draws"))]

    def facts(self) -> dict[str, Any]:
        c = self.module.dalle.config
        return {
            **self.image_tokens.facts(),
            "text_length": c.text_length,
            "vocab_size": c.vocab_size,
            "held_out": len(self.held_out),
            "trunk": asdict(c.trunk),
        }

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write both configs, weights, tokenizer, preprocessing and the card, whole or not at all."""
        dalle = self.module.dalle.config
        kind = str(self.module.dalle.begin.dtype).removeprefix("torch.")
        values = {
            "model_type": MODEL_TYPE,
            "torch_dtype": kind,
            "vocab_size": dalle.vocab_size,
            "text_length": dalle.text_length,
            "end_token_id": dalle.end_token_id,
            **{name: getattr(dalle.trunk, name) for name in SIZES},
            "dropout": dalle.trunk.dropout,
            "image_tokens": config_to_values(self.module.image_tokens.config),
            "held_out": list(self.held_out),
        }
        with new_folder(directory, overwrite) as partial:
            write_json(partial / "config.json", values)
            write_json(partial / FILE, self.processor.to_hf())
            save_tokenizer(self.tokenizer, partial, dalle.text_length)
            if self.card:
                (partial / "README.md").write_text(self.card, "utf-8")
            write_weights(partial, {name: parameter.detach() for name, parameter in self.module.named_parameters()})


def draw_trunk(
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int | None = None,
    dropout: float = 0.0,
) -> TrunkConfig:
    """The trunk of a model that draws, in the shape of Qwen3."""
    d, heads = hidden_size, num_attention_heads
    inner = intermediate_size or default_intermediate_size("qwen3", d)
    return TrunkConfig(d, num_hidden_layers, heads, heads, d // heads, inner, **PRESETS["qwen3"] | {"dropout": dropout})


def load_directory(
    directory: Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> DrawModel:
    """The model that draws in a directory, in evaluation mode.

    Raises:
        InputError: a config that is none; a tensor that is missing, unexpected or of another shape.
    """
    values, where = read_config_values(directory)
    inner = values.get("image_tokens")
    if not isinstance(inner, Mapping):
        raise InputError(f"{where}: image_tokens={inner!r} must be the values of the image tokenizer")
    image_config = config_from_values(inner, f"{where}: image_tokens")
    numbers = {}
    for name in ("vocab_size", "text_length", "end_token_id", *SIZES):
        value = values.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < (name != "end_token_id"):
            raise InputError(f"{where}: {name}={value!r} must be a whole number")
        numbers[name] = value
    if numbers["hidden_size"] % (2 * numbers["num_attention_heads"]):
        raise InputError(
            f"{where}: hidden_size={numbers['hidden_size']} does not give {numbers['num_attention_heads']} even heads"
        )
    trunk = draw_trunk(**{name: numbers[name] for name in SIZES}, dropout=float(values.get("dropout", 0.0)))
    try:
        config = DalleConfig(
            numbers["vocab_size"],
            numbers["text_length"],
            numbers["end_token_id"],
            image_config.grid,
            image_config.codebook_size,
            trunk,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    with torch.device("meta"), Unfilled():
        module = Painter(Dalle(config), ImageTokenizer(image_config))
    fill(module, directory, device, dtype)
    held_out = [str(name) for name in values.get("held_out", [])]
    processor = read_processor(directory, image_config.image_size)
    return DrawModel(module.eval(), processor, load_tokenizer(directory), read_card(directory), held_out)
