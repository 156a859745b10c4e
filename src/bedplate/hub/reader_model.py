"""`ReaderModel`, what `load` returns for a reader: captions of pictures, and answers to questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer

from bedplate.data.images import Source
from bedplate.data.question_loader import prompt_ids
from bedplate.data.tokenizer import load_tokenizer
from bedplate.errors import InputError
from bedplate.hub.image_model import ImageModel, Images, listed
from bedplate.hub.multimodal import MultimodalModel
from bedplate.hub.options import taken
from bedplate.hub.processor import ImageProcessor, read_processor
from bedplate.hub.reader_directory import load_reader, save_reader
from bedplate.hub.text import strings
from bedplate.hub.vision_directory import encoder_of
from bedplate.models.reader import Reader
from bedplate.models.vit import VisionModel
from bedplate.tasks.answer import written

OPTIONS = {"num_beams": 1, "length_penalty": None, "max_new_tokens": None, "batch_size": 64}


@dataclass
class ReaderModel(MultimodalModel):
    """A reader with its tokenizer and processor.

    `module(pixels, ids)` gives logits (B, L, V) over the next token of texts about what `processor` makes of pictures.
    """

    instead_of_text: ClassVar[str] = "writes about pictures and continues no text; use caption or ask"

    module: Reader
    tokenizer: Tokenizer
    processor: ImageProcessor
    max_new_tokens: int = 16
    """of an answer, where nothing else is said"""
    card: str = ""

    def predict(
        self, inputs: Images, question: str | Sequence[str] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """A caption of each picture, or with a question its answer: {"text", "score"}, in order.

        The score is the probability of the whole text: the product of those of its tokens and of its end.

        Args:
            inputs: paths, bytes, PIL images or arrays, one or several.
            question: one for all pictures, or as many as there are pictures.
            options: num_beams and length_penalty of the search (default: the likeliest token each time),
                max_new_tokens of a text, and batch_size, pictures that are read at one time.

        Raises:
            InputError: what is no picture, an empty or too long question, or an unknown option.
        """
        images = listed(inputs)
        questions: Sequence[str | None] = [None] * len(images)
        if question is not None:
            questions = [question] * len(images) if isinstance(question, str) else strings(question, "question")
        if len(questions) != len(images):
            raise InputError(
                f"{len(questions)} questions for {len(images)} pictures: give one, or one a picture; to ask several "
                "of one picture use `ask`"
            )
        return self._written([(image, [each]) for image, each in zip(images, questions, strict=True)], options)

    def caption(self, images: Images, **options: Any) -> list[dict[str, Any]]:
        """A caption of each picture; see `predict`."""
        return self.predict(images, **options)

    def ask(self, image: Source, questions: str | Sequence[str], **options: Any) -> list[dict[str, Any]]:
        """An answer to each question about one picture, which is read once; see `predict`."""
        asked = strings(questions, "question")
        if not asked:
            raise InputError("no question; give one or more")
        return self._written([(image, asked)], options)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> None:
        save_reader(
            directory,
            self.module,
            self.tokenizer,
            self.processor,
            self.card,
            max_new_tokens=self.max_new_tokens,
            overwrite=overwrite,
        )

    def facts(self) -> dict[str, Any]:
        vision, language = self.module.config.vision, self.module.config.language
        return {
            "image_size": list(vision.image_size),
            "patch_size": vision.patch_size,
            "stem": vision.stem,
            "vision": asdict(vision.trunk),
            "context": self.module.config.context,
            "vocab_size": language.vocab_size,
            "trunk": asdict(language.trunk),
        }

    def prompt(self, question: str | None) -> list[int]:
        """What the model reads behind a picture; None asks for a caption.

        Raises:
            InputError: an empty question, or one that leaves no room for an answer.
        """
        if question is None:
            return prompt_ids(self.tokenizer, "")
        if not question.strip():
            raise InputError("the question is empty; ask something, or take `caption` for what a picture shows")
        prompt, room = prompt_ids(self.tokenizer, question), self.module.config.context
        if len(prompt) >= room:
            raise InputError(
                f"the question {question[:40]!r} has {len(prompt)} tokens, and this model reads {room}, its answer "
                "included; shorten it"
            )
        return prompt

    def _written(
        self, asked: Sequence[tuple[Source, Sequence[str | None]]], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The texts behind the questions of each picture, in order."""
        chosen = taken(options, OPTIONS, "a reader")
        chosen["max_new_tokens"] = self.max_new_tokens if chosen["max_new_tokens"] is None else chosen["max_new_tokens"]
        for name in ("batch_size", "max_new_tokens"):
            if chosen[name] < 1:
                raise InputError(f"{name}={chosen[name]}: give 1 or more")
        batch_size, most = chosen.pop("batch_size"), chosen.pop("max_new_tokens")
        search = {name: value for name, value in chosen.items() if value is not None}
        prompts = [[self.prompt(question) for question in questions] for _, questions in asked]
        found: list[tuple[list[int], float]] = []
        for first in range(0, len(asked), batch_size):
            part = asked[first : first + batch_size]
            names = [str(x) if isinstance(x, str | Path) else f"image {first + n}" for n, (x, _) in enumerate(part, 1)]
            pixels = self.processor.pixels([image for image, _ in part], names).to(self.module.device)
            seen = self.processor.normalize(pixels).to(next(self.module.parameters()).dtype)
            rows = [row for row, each in enumerate(prompts[first : first + batch_size]) for _ in each]
            here = [prompt for each in prompts[first : first + batch_size] for prompt in each]
            found += written(self.module, self.tokenizer, seen, rows, here, max_new_tokens=most, scored=True, **search)
        texts = self.tokenizer.decode_batch([ids for ids, _ in found])
        scores = torch.tensor([logs for _, logs in found]).exp().tolist()
        return [{"text": text.strip(), "score": score} for text, score in zip(texts, scores, strict=True)]


def load_directory(directory: Path, device: str | torch.device | None, dtype: str | torch.dtype | None) -> ReaderModel:
    """The reader in a model directory; see `hub.load.load`.

    Raises:
        InputError: it has no tokenizer, or see `hub.reader_directory.load_reader`.
    """
    module, most = load_reader(directory, dtype, device)
    tokenizer = load_tokenizer(directory)
    card = directory / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.is_file() else ""
    return ReaderModel(module, tokenizer, read_processor(directory, module.config.vision.image_size), most, text)


def vision_of(model: Any, name: str) -> tuple[VisionModel, ImageProcessor]:
    """What reads pictures in a model that was loaded, and how it is given them.

    Raises:
        InputError: nothing in the model reads pictures; `name` is what errors call it.
    """
    if isinstance(model, ImageModel):
        return encoder_of(model.module), model.processor
    vision, processor = getattr(getattr(model, "module", None), "vision", None), getattr(model, "processor", None)
    if not isinstance(vision, VisionModel) or not isinstance(processor, ImageProcessor):
        raise InputError(f"{name}: nothing in this model reads pictures; give a ViT, MAE, CLIP, detector or reader")
    return vision, processor
