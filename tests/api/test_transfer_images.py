"""`transfer` on pictures: the same samples for all arms, unseen test pictures, its figures, its folder, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import bedplate
from bedplate.errors import InputError
from bedplate.measure import transfer_images as measure
from bedplate.measure.transfer_images import TransferImages

SHAPES = ("bar", "disc", "square")
ARMS = ["pretrained", "scratch", "probe", "pixels"]
MODEL = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SETTINGS = {
    "train": {"epochs": 1, "batch_size": 16, "precision": "fp32", "threads": 1},
    "optimizer": {"name": "adamw", "learning_rate": 3e-3},
    "data": {"workers": 1},
}
Fits = list[tuple[str, int, list[int]]]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    """Few steps, and what the machine can multiply is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        patch.setattr(measure, "LEAST_STEPS", 20)
        yield


def draw(shape: str, seed: int) -> Image.Image:
    """A shape of any colour somewhere on noise, 20 x 20."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 90, (20, 20, 3), np.uint8))
    x, y, colour = *random.integers(1, 7, 2).tolist(), tuple(random.integers(150, 256, 3).tolist())
    boxes = {"bar": (x, y + 4, x + 11, y + 7), "disc": (x, y, x + 11, y + 11), "square": (x, y, x + 11, y + 11)}
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "disc" else pen.rectangle)(boxes[shape], fill=colour)
    return image


def write(root: Path, each: int, first: int = 0) -> Path:
    """A folder of pictures for each shape."""
    for number, shape in enumerate(SHAPES):
        (root / shape).mkdir(parents=True)
        for i in range(first, first + each):
            draw(shape, 1000 * number + i).save(root / shape / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of each shape; two of the squares are the same."""
    root = write(tmp_path_factory.mktemp("pictures") / "shapes", 30)
    (root / "square" / "0 again.png").write_bytes((root / "square" / "0.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked autoencoder that has seen a few of the shapes."""
    out = tmp_path_factory.mktemp("base")
    write(out / "seen", 20, first=500)
    bedplate.pretrain(
        {
            "task": "mae",
            "out": str(out / "run"),
            "model": MODEL,
            "decoder": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            "data": {"path": str(out / "seen"), "workers": 1},
            "train": {"steps": 60, "batch_size": 16, "precision": "fp32", "threads": 1},
            "log": {"every": 30},
        }
    )
    return out / "run"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, base: Path, folder: Path) -> tuple[Any, Fits, TransferImages]:
    """(the result of 9 and all labels with two seeds, (arm, seed, sample) of each fit, the comparison)."""
    fits: Fits = []
    made: list[TransferImages] = []
    learn, run = TransferImages.learn, TransferImages.run

    def spy_learn(self: TransferImages, arm: str, sample: Any, seed: int) -> Any:
        fits.append((arm, seed, sample.tolist()))
        return learn(self, arm, sample, seed)

    def spy_run(self: TransferImages, counts: Any) -> None:
        made.append(self)
        run(self, counts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransferImages, "learn", spy_learn)
        patch.setattr(TransferImages, "run", spy_run)
        out = tmp_path_factory.mktemp("transfer") / "compared"
        result = bedplate.transfer(folder, base, labels=("all", 9), seeds=2, out=out, settings=SETTINGS)
    return result, fits, made[0]


def test_all_arms_learn_from_the_same_samples(compared: Any) -> None:
    result, fits, comparison = compared
    count = len(comparison.train)
    assert list(result["arms"]) == ARMS and count == result["data"]["train"]
    order = [(arm, seed, n) for n in (9, count) for seed in (0, 1) for arm in ARMS]
    assert [(arm, seed, len(sample)) for arm, seed, sample in fits] == order
    samples = {(seed, len(sample)): sample for _, seed, sample in fits}
    assert all(sample == samples[seed, len(sample)] for _, seed, sample in fits)
    assert samples[0, 9] != samples[1, 9] and set(samples[0, 9]) < set(samples[0, count])
    targets = comparison.train.targets
    assert np.bincount(targets[samples[0, 9]]).tolist() == [3, 3, 3]


def test_no_test_picture_is_learnt_from(compared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result, fits, comparison = compared
    test = {comparison.test.store.pixels(np.array([i])).tobytes() for i in range(len(comparison.test))}
    assert result["data"]["test"] == 18
    for _, _, sample in fits:
        assert not test & {comparison.train.store.pixels(np.array([i])).tobytes() for i in sample}
    seen: list[int] = []
    loss = measure.ClassifyImages.loss

    def spy(self: Any, batch: Any) -> Any:
        seen.extend(batch["index"].tolist())
        return loss(self, batch)

    monkeypatch.setattr(measure.ClassifyImages, "loss", spy)
    comparison.learn("scratch", np.array([3, 40, 70]), 0)
    assert set(seen) == {3, 40, 70}


def test_the_figures_are_those_of_the_predictions(compared: Any) -> None:
    result, _, comparison = compared
    assert result["classes"] == list(SHAPES) and result["seeds"] == 2
    assert len(result["rows"]) == 8 and len(result["differences"]) == 6
    accuracy = {}
    for row in result["rows"]:
        correct = np.stack(comparison.cells[row["labels"], row["arm"]].predicted) == comparison.truth
        accuracy[row["labels"], row["arm"]] = row["accuracy"]["value"]
        assert correct.shape == (2, 18) and row["accuracy"]["value"] == pytest.approx(correct.mean())
        assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= row["accuracy"]["high"]
    for row in result["differences"]:
        gain = accuracy[row["labels"], "pretrained"] - accuracy[row["labels"], row["over"]]
        assert row["accuracy"]["value"] == pytest.approx(gain)
    assert accuracy[len(comparison.train), "probe"] > 0.6  # chance is a third
    assert np.sum(result["confusion"]["matrix"]) == 18
    for row in result["mistakes"]:
        assert row["label"] in row["source"] and row["predicted"] != row["label"]


def test_the_folder_holds_the_figures_a_report_and_the_adapted_model(compared: Any, folder: Path) -> None:
    result, _, comparison = compared
    out = Path(result["out"])
    assert {path.name for path in out.iterdir()} == {"model", "transfer.json", "report.html"}
    stored = json.loads((out / "transfer.json").read_text("utf-8"))
    assert stored["rows"] == result["rows"] and stored["data"]["path"] == ["shapes"]
    page = (out / "report.html").read_text("utf-8")
    assert page.count("data:image/png") == len(result["mistakes"]) > 0
    assert (
        "Linear probe of the frozen base" in page
        and "Test pictures" in page
        and "The task is to give a picture" in page
    )
    assert "texts" not in page and "TF-IDF" not in page
    model = bedplate.load(out / "model")
    best = comparison.cells[len(comparison.train), "pretrained"].predicted[0]
    predicted = model.predict(comparison.test.images.sources)
    assert [model.labels.index(row["label"]) for row in predicted] == best.tolist()
    assert str(folder.parent) not in model.card and "means over 2 seeds" in model.card
    assert "A classifier of pictures of 16x16 pixels (bar, disc, square)" in model.card
    assert "AutoModelForImageClassification" in model.card


def test_the_same_again(compared: Any, tmp_path: Path, base: Path, folder: Path) -> None:
    """A smaller comparison repeats its part of the larger one: nothing but the seed and the sample decides."""
    rows = {(row["labels"], row["arm"]): row for row in compared[0]["rows"]}
    again = bedplate.transfer(folder, base, labels=[9], seeds=2, out=tmp_path / "again", settings=SETTINGS)
    for row in again["rows"]:
        before = rows[row["labels"], row["arm"]]
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}


def test_what_is_scored_is_not_learnt_from_and_what_is_broken_is_said(base: Path, tmp_path: Path) -> None:
    train, test, said = write(tmp_path / "train", 8), write(tmp_path / "test", 4, first=6), list[str]()
    (train / "bar" / "0.png").write_bytes(b"no picture")
    result = bedplate.transfer(
        train, base, labels=[3, 17], seeds=1, test=test, out=tmp_path / "out", settings=SETTINGS, say=said.append
    )
    assert (result["data"]["train"], result["data"]["test"], result["data"]["equal_pictures"]) == (17, 12, 6)
    assert [len(result["data"]["broken"]), {row["labels"] for row in result["rows"]}] == [1, {3, 17}]
    assert "6 pictures that are scored in another part were left out." in said
    assert any("broken" in line and "bar/0.png" in line for line in said)


def test_a_classifier_is_a_base_at_another_size_and_pooling(
    compared: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LEAST_STEPS", 2)
    said: list[str] = []
    settings = SETTINGS | {
        "model": {"image_size": [24, 16], "pooling": "mean"},
        "augment": {"crop_scale": [0.5, 1.0]},
        "data": {"workers": 1, "store": 28},
    }
    result = bedplate.transfer(
        folder, compared[0]["model"], labels=[6], seeds=1, out=tmp_path / "out", settings=settings, say=said.append
    )
    assert (
        "The base reads pictures of 16x16 pixels, this comparison gives it 24x16: its positions are interpolated."
        in said
    )
    model = bedplate.load(result["model"])
    assert (model.config.image_size, model.config.pooling) == ((24, 16), "mean")
    assert model.processor.size == (24, 16)
    assert result["settings"]["model"]["pooling"] == "mean"


def test_pre_training_that_helps_is_seen(folder: Path, tmp_path: Path) -> None:
    """A base that was taught the shapes beats its network from scratch, and the probe reads them off its states."""
    taught = bedplate.pretrain(
        {
            "task": "classify_images",
            "out": str(tmp_path / "taught"),
            "model": MODEL,
            "data": {"path": str(write(tmp_path / "many", 60, first=500)), "workers": 1},
            "train": {"epochs": 32, "batch_size": 16, "precision": "fp32", "threads": 1},
        }
    )
    result = bedplate.transfer(folder, taught["model"], labels=[6], seeds=2, out=tmp_path / "out", settings=SETTINGS)
    (over,) = [row["accuracy"] for row in result["differences"] if row["over"] == "scratch"]
    assert over["low"] > 0
    accuracy = {row["arm"]: row["accuracy"]["value"] for row in result["rows"]}
    assert accuracy["probe"] > accuracy["pixels"]


def test_bad_input(base: Path, folder: Path, tiny_model: Path, labelled: Path, tmp_path: Path) -> None:
    def refused(message: str, data: Path = folder, of: Path = base, **more: Any) -> None:
        with pytest.raises(InputError, match=message):
            bedplate.transfer(data, of, out=tmp_path / "no", **more)
        assert not (tmp_path / "no").exists()

    refused("shapes: holds pictures, and .* is a model of text; give a base that reads pictures", of=tiny_model)
    refused("which column holds the pictures.*--column", data=labelled)
    refused("bar: the pictures have no labels; give a folder for each class", data=folder / "bar")
    refused("bar: the pictures have no labels", test=folder / "bar")
    refused("labels=2: fewer than one for each of 3 classes", labels=[2])
    refused("no number of labels is left: there are .* pictures", labels=[500])
    refused("settings: 'detector' is no part of a comparison", settings={"detector": {"head": "set"}})
    refused("settings: data.path is no part of a comparison", settings={"data": {"path": "x"}})
    refused("settings: train.ema is not used", settings={"train": {"ema": 0.9}})
    refused("brings its own network; leave model.hidden_size out", settings={"model": {"hidden_size": 64}})
    refused("image_size=18x18 is not a multiple", settings={"model": {"image_size": 18}})
    refused("every picture to train on is also one that is scored", test=folder)
    for part in ("train", "test"):
        write(tmp_path / "parts" / part, 4)
    refused("parts: has a part for training beside others", test=tmp_path / "parts")
