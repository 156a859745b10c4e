"""What a GPU runs of all families beside causal text: they learn there, and what is learnt answers as on the CPU.

Skipped where there is no GPU. With another `DEVICE` the same tests compare the CPU with itself.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.models.mae import MAE
from bedplate.train.log import read_rows

from . import test_contrast_ranks, test_vision_ranks
from .pixel_masks import masks_of_pixels

DEVICE = "cuda"

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

pictures, scenes, pairs = test_vision_ranks.pictures, test_vision_ranks.scenes, test_contrast_ranks.pairs
Places = dict[str, Path]
Train = Callable[..., Path]

SMALL = "hidden_size=16 {0}num_hidden_layers=2 {0}num_attention_heads=2"
VIT = "model." + SMALL.format("model.") + " model.image_size=8"
LABELLED = f"task=classify_images {VIT} data.path=<pictures>/train data.test_path=<pictures>/test"
RESIDUAL = f"{LABELLED} model.stem=residual model.pooling=mean optimizer.name=muon train.ema=0.9"
HIDDEN = f"task=mae {VIT} data.path=<pictures>/train decoder.hidden_size=8 decoder.num_attention_heads=2"
BOXES = f"task=detect {VIT} model.image_size=32 model.patch_size=8 data.path=<scenes>"
TOWERS = " ".join(f"model.{part}." + SMALL.format(f"model.{part}.") for part in ("text", "image"))
CLIP = (
    f"task=contrast {TOWERS} model.text.vocab_size=270 model.text.context=32 model.image.image_size=8 data.path=<pairs>"
)
CLIP += " model.projection_dim=12 train.batch_size=8"
READER = " ".join(f"model.{part}." + SMALL.format(f"model.{part}.") for part in ("vision", "language"))
READER += " task=answer model.vision.image_size=8 model.vision.patch_size=4 model.language.context=16"
READER += " tokenizer.vocab_size=300 data.path=<questions>"
CODES = "task=image_tokens model.image_size=8 model.patch_size=4 model.levels=[5,4] model.width=16 data.path=<pairs>"
DRAW = "task=draw model." + SMALL.format("model.") + " model.text_length=12 model.vocab_size=300 data.path=<pairs>"
DRAW += " tokenizer_base=<tokens>"

# By the recipe that they begin with, what families add to it; <names> are those of `places`. Here nothing is drawn on
# the device, whose random numbers are others than the CPU's.
TEXTS = {
    "modernbert": "model.preset=modernbert objective.masked_share=1 tokenizer.vocab_size=320",
    "bert": "model.preset=bert objective.masked_share=1 data.isolate_documents=true",
    "both ways": "objective.masked_share=0.25",
    "documents": " ".join(f"objective.{each}_weight=0.5 objective.{each}_batch=8" for each in ("document", "passage")),
}
TUNED = {
    "classify": "",
    "classify both ways": "model.attention=bidirectional model.pooling=mean",
    "adapter": "adapter.rank=4",
    "chat": "task=chat data.path=<chats>",
    "chat adapter": "task=chat data.path=<chats> adapter.rank=4",
    "summarize": "task=summarize data.path=<summaries>",
}
SEEN = {
    "mae": f"{HIDDEN} augment.flip=false",
    "vit": f"{LABELLED} augment.flip=false",
    "residual": f"{RESIDUAL} augment.flip=false",
    "boxes": f"{BOXES} augment.flip=false",
    "clip": CLIP,
    "clip in parts": f"{CLIP} train.micro_batch_size=2",
    "siglip": f"{CLIP} objective.loss=siglip objective.image_weight=0.5",
    "reader": READER,
    "codes": f"{CODES} augment.flip=false",
    "draw": f"{DRAW} objective.text_drop=0 model.dropout=0",
}
# What is drawn on the device.
CHANGED = "augment.shift=1 augment.colour=0.2"
DRAWN = {
    "mae drawn": f"{HIDDEN} {CHANGED} augment.crop_scale=[0.5,1]",
    "simclr": f"task=simclr {VIT} data.path=<pictures>/train augment.flip=false augment.shift=1 augment.colour=0.1"
    " augment.grey=0.1 augment.crop_scale=[0.8,1] train.batch_size=8 optimizer.learning_rate=5e-3",
    "mixed": f"{RESIDUAL} {CHANGED} augment.randaugment=[2,5] augment.erasing=0.2 augment.mixup=0.5 augment.cutmix=0.5"
    " objective.label_smoothing=0.1 evaluate.flip=true",
    "boxes drawn": f"{BOXES} augment.scale=[0.5,2]",
    "set of boxes": f"{BOXES} detector.head=set",
    "clip drawn": f"{CLIP} {CHANGED} augment.randaugment=[2,5] augment.zoom_out=1.2 augment.crop_scale=[0.5,1]",
    "clip drawn in parts": f"{CLIP} {CHANGED} train.micro_batch_size=2 model.dropout=0.1",
    "reader drawn": f"{READER} {CHANGED}",
    "codes drawn": f"{CODES} augment.flip=true",
    "draw drawn": f"{DRAW} objective.text_drop=0.5 model.dropout=0",
}
FAMILIES = {**TEXTS, **TUNED, **SEEN, **DRAWN}

TEXT, PROMPTS = ["the cat sees a dog at night", "her sister likes the house"], ["a", "b"]
QUESTION = "what number is it?"

# What models are asked. Rows of a detector are told by their scores: of equal ones the order is open.
ASKED: dict[str, Callable[[Any, list[Path]], Any]] = {
    "modernbert": lambda model, files: model.predict("The cat <|mask|> a dog."),
    "both ways": lambda model, files: [model.generate(TEXT, max_new_tokens=4, seed=1), model.embed(TEXT)],
    "classify": lambda model, files: model.predict(TEXT),
    "adapter": lambda model, files: model.predict(TEXT),
    "chat": lambda model, files: model.chat([{"role": "user", "content": "a"}], temperature=0, max_new_tokens=8),
    "summarize": lambda model, files: [model.predict(PROMPTS), model.predict(PROMPTS, num_beams=1)],
    "mae": lambda model, files: [model.embed(files), model.attention(files)],
    "residual": lambda model, files: [model.predict(files), model.embed(files)],
    "mixed": lambda model, files: model.predict(files),
    "boxes": lambda model, files: scores(model.predict(files, threshold=0.0, most=5)),
    "set of boxes": lambda model, files: scores(model.predict(files, threshold=0.0, most=5)),
    "clip": lambda model, files: [model.embed(TEXT), model.embed(files), model.predict(files, labels="red,blue")],
    "siglip": lambda model, files: [model.embed(TEXT), model.predict(files, labels="red,blue", template=["a {label}"])],
    "reader": lambda model, files: [
        model.caption(files),
        model.ask(files[0], [QUESTION]),
        model.caption(files, num_beams=2),
    ],
    "codes": lambda model, files: [model.encode(files), model.decode(model.encode(files))],
    "draw": lambda model, files: [
        model.draw(["thing 1", "thing 2"], guidance=1.0, temperature=0.0),
        model.draw("thing 1", n=2, seed=5, top_k=10),
        model.draw("thing 1", seed=5, prefix=files[0]),
    ],
}
# What is measured of a model, and on what.
MEASURED = {
    "modernbert": "corpus",
    "both ways": "corpus",
    "classify": "labelled",
    "summarize": "summaries",
    "residual": "pictures/test",
    "boxes": "scenes",
    "clip": "pairs",
    "reader": "questions",
    "codes": "pairs",
}


@pytest.fixture(autouse=True)
def _plain_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32 as on the CPU; PyTorch lets a GPU round them to TF32 else."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def places(
    corpus: Path,
    labelled: Path,
    pictures: Path,
    scenes: Path,
    pairs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Places:
    """Files and folders by the names that recipes have for them."""
    root = tmp_path_factory.mktemp("families")
    answers = {"a": "today", "b": "at night", "c": "near the sea", "d": "again"}
    asked = [(file, number // 2) for number, file in enumerate(sorted(pairs.glob("*.png")))]
    rows: dict[str, list[dict[str, str]]] = {
        "chats": [{"prompt": prompt, "response": text} for prompt, text in answers.items()] * 16,
        "summaries": [{"document": document, "summary": text} for document, text in answers.items()] * 16,
        "questions": [{"image": str(file), "question": QUESTION, "answer": str(number)} for file, number in asked],
    }
    for name, each in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each), "utf-8")
    written = {name: root / f"{name}.jsonl" for name in rows}
    return {"corpus": corpus, "labelled": labelled, "pictures": pictures, "scenes": scenes, "pairs": pairs, **written}


@pytest.fixture(scope="module")
def train(places: Places, tiny_recipe: Any, tiny_finetune: Any, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`train(family, device, *overrides)`: the run directory of 6 steps in fp32; the same one when asked again."""
    done: dict[tuple[str, ...], Path] = {}
    pictured = {
        "train": {"precision": "fp32", "threads": 1, "batch_size": 4, "epochs": None},
        "data": {"workers": 1, "val_fraction": 0.3},
        "optimizer": {"name": "adamw"},
    }

    def at(text: str) -> str:
        for name in places:
            text = text.replace(f"<{name}>", str(places[name]))
        return text

    def run(family: str, device: str, *overrides: str) -> Path:
        key = (family, device, *overrides)
        if key in done:
            return done[key]
        if "<tokens>" in FAMILIES[family]:
            places.setdefault("tokens", run("codes", "cpu"))
        out = tmp_path_factory.mktemp("runs") / "run"  # its own: a run that fails leaves its folder
        options = [*map(at, FAMILIES[family].split()), f"train.device={device}", "log.every=1", "checkpoint.every=3"]
        options += ["train.steps=6", "evaluate.every=3", *overrides]
        with pytest.MonkeyPatch.context() as patch:
            if family == "mae":
                patch.setattr(MAE, "masks", masks_of_pixels)
            if family in TUNED:
                bedplate.finetune(tiny_finetune(out, "model.dropout=0", "train.batch_size=8", *options))
            elif family in TEXTS:
                bedplate.pretrain(tiny_recipe(out, *options))
            else:
                bedplate.pretrain(pictured | {"out": str(out)}, *options)
        done[key] = out
        return out

    return run


def column(run: Path, name: str) -> torch.Tensor:
    return torch.tensor([row[name] for row in read_rows(run / "metrics.jsonl") if name in row])


def scores(rows: list[list[dict[str, Any]]]) -> list[list[float]]:
    return [[box["score"] for box in row] for row in rows]


def same(found: Any, expected: Any) -> None:
    """Whether two answers are: all words and labels, numbers and vectors nearly, pixels by two of 255 steps."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        same(list(found.values()), list(expected.values()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, Image.Image):
        assert np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16)).max() <= 2
    elif isinstance(expected, torch.Tensor):
        assert found.device == expected.device, "answers lie on the CPU"
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    else:
        assert found == (pytest.approx(expected, rel=0, abs=1e-3) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("family", [*TEXTS, *TUNED, *SEEN])
def test_training_equals_the_cpu(family: str, train: Train) -> None:
    runs = train(family, DEVICE), train(family, "cpu")
    for name, count in (("loss", 6), ("val_loss", 3)):
        found, expected = (column(run, name) for run in runs)
        assert len(expected) == count
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)
        # The first are of weights that are the same: there is nothing yet that could have grown.
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DRAWN)
def test_what_is_drawn_on_the_device_is_learnt_from(family: str, train: Train) -> None:
    losses = column(train(family, DEVICE, "train.steps=30"), "loss")
    assert losses.isfinite().all() and losses[-6:].mean() < losses[:6].mean()


@pytest.mark.parametrize("options", [("train.compile=false",), ("train.compile=true",)], ids=["bf16", "bf16 compiled"])
@pytest.mark.parametrize("family", [*TEXTS, "classify", "adapter", *SEEN, *DRAWN])
def test_the_switches_change_speed_and_rounding_alone(family: str, options: tuple[str, ...], train: Train) -> None:
    slow = "optimizer.learning_rate=1e-5"  # else steps multiply what rounding leaves
    plain, switched = (
        column(train(family, DEVICE, slow, *more), "loss") for more in ((), ("train.precision=bf16", *options))
    )
    torch.testing.assert_close(switched, plain, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("family", ASKED)
def test_a_saved_model_answers_as_on_the_cpu(family: str, train: Train, places: Places) -> None:
    run, files = train(family, "cpu"), sorted(places["pairs"].glob("*.png"))[:3]
    found, expected = (ASKED[family](bedplate.load(run, device), files) for device in (DEVICE, "cpu"))
    same(found, expected)


@pytest.mark.parametrize("family", MEASURED)
def test_a_saved_model_measures_as_on_the_cpu(family: str, train: Train, places: Places) -> None:
    name, _, below = MEASURED[family].partition("/")
    run, data = train(family, "cpu"), places[name] / below
    found, expected = (bedplate.evaluate(run, data, device=device)["metrics"] for device in (DEVICE, "cpu"))
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        assert found[metric]["value"] == pytest.approx(value["value"], rel=1e-3, abs=1e-3), metric
