"""An index of pictures for search: a vector of each, kept in a file, in which only what is new is embedded again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bedplate.data.image_refs import ImageRef
from bedplate.data.images import BadImage
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.folder import write_atomic

KEY, VECTORS = "bedplate_index", "vectors"
BATCH = 64


@dataclass
class PictureIndex:
    """Vectors of pictures by one model.

    Attributes:
        model: the fingerprint of the model, see `fingerprint`.
        stamps: of each picture by name, what changes when it does; in the order of `vectors`.
        vectors: `(N, P)` fp32 of length 1.
        broken: of each picture that could not be decoded, its stamp and why.
    """

    model: str
    stamps: dict[str, str] = field(default_factory=dict)
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    broken: dict[str, tuple[str, str]] = field(default_factory=dict)

    def update(self, model: ClipModel, pictures: Mapping[str, ImageRef], progress: Callable[[str], object]) -> int:
        """Embed the pictures that are new or changed, and drop those that are gone; returns how many were embedded.

        Interrupted, the index holds what was done until then.
        """
        stamps = {name: stamp(ref) for name, ref in pictures.items()}
        rows = [row for row, (name, old) in enumerate(self.stamps.items()) if stamps.get(name) == old]
        kept = [name for name, old in self.stamps.items() if stamps.get(name) == old]
        self.broken = {name: known for name, known in self.broken.items() if stamps.get(name) == known[0]}
        self.vectors = self.vectors[rows] if rows else torch.zeros(0, model.config.projection_dim)
        self.stamps = {name: stamps[name] for name in kept}
        new = [name for name in pictures if name not in self.stamps and name not in self.broken]
        parts = [self.vectors]
        try:
            for first in range(0, len(new), BATCH):
                done, vectors = self._embed(
                    model, {name: pictures[name] for name in new[first : first + BATCH]}, stamps
                )
                parts.append(vectors)
                self.stamps |= done
                if first // BATCH % 16 == 15:
                    progress(f"{first + BATCH:,} of {len(new):,} new pictures read")
        finally:
            self.vectors = torch.cat(parts)[: len(self.stamps)]
        return len(new)

    def _embed(
        self, model: ClipModel, pictures: Mapping[str, ImageRef], stamps: Mapping[str, str]
    ) -> tuple[dict[str, str], Tensor]:
        """({name: stamp}, vectors) of those that can be decoded; one picture at a time is in memory whole."""
        done, rows = {}, []
        for name, ref in pictures.items():
            try:
                rows.append(model.processor.pixels([ref.image(model.processor.size)]))
                done[name] = stamps[name]
            except BadImage as error:
                self.broken[name] = stamps[name], str(error)
        return done, model.embed_pixels(torch.cat(rows)) if rows else self.vectors[:0]

    def nearest(self, vector: Tensor, n: int) -> list[tuple[str, float]]:
        """The `n` pictures, by name, of the highest cosine with a vector `(P,)` of length 1, nearest first."""
        best = (self.vectors @ vector).topk(min(n, len(self.vectors)))
        names = list(self.stamps)
        return [(names[row], score) for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def save(self, file: Path) -> None:
        """Write it beside its place, then rename.

        Raises:
            InputError: the disk is full or the folder cannot be written.
        """
        content = {KEY: "1", "model": self.model}
        content |= {name: json.dumps(getattr(self, name)) for name in ("stamps", "broken")}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error}); choose another file") from error
        write_atomic(file, lambda path: save_file({VECTORS: self.vectors.contiguous()}, path, metadata=content))

    @staticmethod
    def load(file: Path, model: str) -> PictureIndex:
        """The index in a file; an empty one where there is none, or one of another model.

        Raises:
            InputError: the file is something else, or damaged.
        """
        if not file.exists():
            return PictureIndex(model)
        try:
            with safe_open(file, framework="pt") as opened:
                content = opened.metadata() or {}
                if KEY not in content:
                    raise InputError(f"{file}: is no index of search and is not overwritten; give another name")
                if content["model"] != model:
                    return PictureIndex(model)
                broken = {name: (old, why) for name, (old, why) in json.loads(content["broken"]).items()}
                return PictureIndex(model, json.loads(content["stamps"]), opened.get_tensor(VECTORS), broken)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: no index, or a damaged one ({error}); delete it, or give another name") from None


def stamp(ref: ImageRef) -> str:
    """What changes when a picture does: size and modification time of its file, and its place in that."""
    try:
        facts = os.stat(ref.file)
        return f"{facts.st_size} {facts.st_mtime_ns} {ref.kind} {ref.place} {ref.size}"
    except OSError:
        return "missing"


def fingerprint(model: ClipModel) -> str:
    """A hash of all that makes a vector of a picture: the image tower, its projection, how pictures are prepared."""
    total = hashlib.blake2b(f"{model.processor} {model.config.vision}".encode(), digest_size=16)
    for name, weight in _image_weights(model):
        total.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        total.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _image_weights(model: ClipModel) -> Iterable[tuple[str, Tensor]]:
    yield from model.module.vision.named_parameters()
    yield "projection", model.module.visual_projection.weight
