"""`ClipModel`, what `load` returns for a CLIP: texts and pictures in one space, and labels that nobody taught it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bedplate.data.images import Source
from bedplate.data.tokenizer import load_tokenizer, load_tokenizer_config
from bedplate.errors import InputError
from bedplate.hub.clip_directory import load_clip_module, read_clip_processor, save_clip_directory
from bedplate.hub.clip_texts import PLACE, TEMPLATES, checked_templates, text_ids, text_rows
from bedplate.hub.image_model import Images, listed
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.options import taken
from bedplate.hub.processor import ImageProcessor
from bedplate.models.clip import Clip, ClipConfig
from bedplate.tasks.classify import as_predictions
from bedplate.tasks.zeroshot import Labels, check_distinct, read_labels


@dataclass
class ClipModel(MultimodalModel):
    """A CLIP; `tokenizer` is None where the directory has none, and then it knows pictures alone.

    `module(pixels, ids)` gives logits (pictures, texts) of what `processor` and `tokenizer` make of both.

    Attributes:
        templates: sentences with {label}, in which `predict` reads labels.
        tokenizer_config: as the directory has it.
    """

    instead_of_text: ClassVar[str] = "reads pictures and writes no text; use predict --labels or search"

    module: Clip
    processor: ImageProcessor
    tokenizer: Tokenizer | None = None
    card: str = ""
    templates: tuple[str, ...] = TEMPLATES
    tokenizer_config: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ClipConfig:
        return self.module.config

    def predict(self, inputs: Images, **options: Any) -> list[dict[str, Any]]:
        """Which of some labels each picture shows: `{"label", "score", "scores": {label: probability}}`, in order.

        Options are `labels`, "cat,dog", a list, or {name: words that the model reads for it}; `template`, one or
        several, in place of the model's own (see `label_vectors`); `top`, how many labels `scores` names, surest first
        (default: all, as they were given); `batch_size`.

        Raises:
            InputError: what is no picture, no labels, or labels, templates or options that do not fit.
        """
        known = {"labels": None, "template": None, "top": None, "batch_size": 64}
        chosen = taken(options, known, "a CLIP")
        if chosen["labels"] is None:
            raise InputError("labels: none are given; say what to choose between, such as labels=cat,dog,pizza")
        words, top = read_labels(chosen["labels"]), chosen["top"]
        if top is not None and top < 1:
            raise InputError(f"top={top}: give 1 or more")
        vectors = self.label_vectors(words, chosen["template"])
        images = self._embed_images(listed(inputs), chosen["batch_size"])
        with torch.no_grad():
            logits = self.module.logits(images.to(self.module.device), vectors.to(self.module.device)).cpu()
        predictions = as_predictions(logits, list(words))
        for prediction in predictions if top is not None else ():
            best = sorted(prediction["scores"].items(), key=lambda item: -item[1])
            prediction["scores"] = dict(best[:top])
        return predictions

    def label_vectors(self, labels: Labels, template: str | Sequence[str] | None = None) -> Tensor:
        """A vector of each label, `(C, P)` of length 1, fp32 on the CPU.

        It is the mean of its vectors in all templates (arXiv 2103.00020, section 3.1.4); `template` is one or several,
        by default the model's own.

        Raises:
            InputError: labels or templates that are none, two labels of the same tokens, or a label that is too long.
        """
        words = read_labels(labels)
        vectors = self.text_vectors(list(words.values()), template, "label")
        check_distinct(words, text_rows(self.need_tokenizer(), self.config, list(words.values()), what="label"))
        return vectors

    def text_vectors(
        self,
        texts: Sequence[str],
        template: str | Sequence[str] | None = None,
        what: str = "text",
        *,
        truncate: bool = False,
    ) -> Tensor:
        """A vector of each text, as of a label; `what` the texts are called in errors, `truncate` as of `embed`."""
        total = torch.zeros(len(texts), self.config.projection_dim)
        for sentence in self.templates if template is None else checked_templates(template):
            written = [sentence.replace(PLACE, text) for text in texts]
            total += F.normalize(self._embed_texts(written, 256, truncate or None, what), dim=1)
        return F.normalize(total, dim=1)

    def embed(
        self,
        inputs: Images | Sequence[str],
        *,
        normalize: bool = True,
        truncate: bool = False,
        batch_size: int = 64,
    ) -> Tensor:
        """Vectors of texts or of pictures, `(N, P)` fp32 on the CPU, in order; no template is added.

        Strings are texts; pictures are `Path`s, bytes, PIL images or arrays.

        Args:
            normalize: whether vectors have length 1, so that products are cosines.
            truncate: cut texts that are longer than the model reads.

        Raises:
            InputError: both kinds at once, what is no picture, or an empty or too long text.
        """
        items: list[Any] = listed(inputs)
        texts = [item for item in items if isinstance(item, str)]
        if texts and len(texts) < len(items):
            raise InputError("give either texts or pictures at one time; a picture's path is a Path, not a string")
        vectors = self._embed_texts(texts, batch_size, truncate) if texts else self._embed_images(items, batch_size)
        return F.normalize(vectors, dim=1) if normalize else vectors

    def token_count(self, text: str) -> int:
        """How many tokens a text has, its end included; the model reads `config.text.max_position_embeddings`."""
        return len(text_ids(self.need_tokenizer(), self.config, text))

    @torch.inference_mode()
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """Vectors `(B, P)` of length 1, fp32 on the CPU, of what `processor.pixels` gives, `(B, 3, H, W)` uint8."""
        return F.normalize(self._image_features(pixels), dim=1)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write a model directory that `load` reads, and `transformers` where it knows the shape."""
        save_clip_directory(
            directory,
            self.module,
            self.processor,
            self.tokenizer,
            self.card,
            templates=self.templates,
            tokenizer_config=self.tokenizer_config,
            overwrite=overwrite,
        )

    def facts(self) -> dict[str, Any]:
        text, vision = self.config.text, self.config.vision
        return {
            "dtype": str(self.module.dtype).removeprefix("torch."),
            "image_size": list(vision.image_size),
            "patch_size": vision.patch_size,
            "stem": vision.stem,
            "text": f"{text.family}, {text.trunk.num_hidden_layers} layers of {text.trunk.hidden_size}",
            "context": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "projection_dim": self.config.projection_dim,
            "tokenizer": self.tokenizer is not None,
            "templates": list(self.templates),
            "trunk": asdict(vision.trunk),
        }

    @torch.inference_mode()
    def _embed_images(self, images: list[Source], batch_size: int) -> Tensor:
        """`(N, P)` fp32 on the CPU, not normalised; `batch_size` pictures are in memory at one time."""
        vectors = torch.zeros(len(images), self.config.projection_dim)
        for first in _starts(len(images), batch_size):
            part = images[first : first + batch_size]
            names = [str(one) if isinstance(one, str | Path) else f"image {n}" for n, one in enumerate(part, first + 1)]
            vectors[first : first + len(part)] = self._image_features(self.processor.pixels(part, names))
        return vectors

    def _image_features(self, pixels: Tensor) -> Tensor:
        """`(B, P)` fp32 on the CPU, not normalised, of stored pixels `(B, 3, H, W)` uint8."""
        read = self.processor.normalize(pixels.to(self.module.device)).to(self.module.dtype)
        return self.module.image_features(read).float().cpu()

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str], batch_size: int, truncate: bool | None, what: str = "text") -> Tensor:
        """`(N, P)`, not normalised; texts of like length share a batch."""
        rows = text_rows(self.need_tokenizer(), self.config, texts, truncate=truncate, what=what)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        vectors = torch.zeros(len(rows), self.config.projection_dim)
        for first in _starts(len(order), batch_size):
            part = order[first : first + batch_size]
            longest = len(rows[part[-1]])
            ids = torch.tensor([rows[i] + rows[i][-1:] * (longest - len(rows[i])) for i in part])
            vectors[part] = self.module.text_features(ids.to(self.module.device)).float().cpu()
        return vectors

    def need_tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            InputError: it has none.
        """
        if self.tokenizer is None:
            raise InputError(
                "this model has no tokenizer and reads no texts: put its tokenizer.json into the directory and load it "
                "again; of an older one, CLIPTokenizerFast.from_pretrained(DIR).save_pretrained(DIR) writes it"
            )
        return self.tokenizer


def load_directory(
    directory: Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> ClipModel:
    """The CLIP in a model directory; see `hub.load.load`."""
    module = load_clip_module(directory, dtype, device)
    processor, templates = read_clip_processor(directory, module.config)
    tokenizer = load_tokenizer(directory) if (directory / "tokenizer.json").is_file() else None
    card = directory / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    return ClipModel(module, processor, tokenizer, text, templates, load_tokenizer_config(directory))


def _starts(count: int, batch_size: int) -> range:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give 1 or more")
    return range(0, count, batch_size)
