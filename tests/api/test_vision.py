"""Runs on images from files to a used model: without labels, classification, detection; resuming; bad input."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.errors import InputError, Interrupted
from bedplate.hub.image_model import ImageModel
from bedplate.train.log import read_rows

TIMING = {"images_per_second", "mfu", "waiting", "seconds"}
COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}
MODEL = {"patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
TRAIN = {"precision": "fp32", "threads": 1, "batch_size": 8, "epochs": None, "steps": 24}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    """What the machine can multiply is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        yield


def _picture(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, 40, (20, 24, 3))
    return Image.fromarray((noise + colour).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures for each of three classes, in train and test."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 20), ("test", 8)):
        for number, (name, colour) in enumerate(COLOURS.items()):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                _picture(colour, 1000 * number + i + 500 * (part == "test")).save(folder / f"{i}.png")
    return root


def _recipe(task: str, out: Path, path: Path, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task": task,
        "out": str(out),
        "model": MODEL,
        "data": {"path": str(path), "val_fraction": 0.2, "workers": 1},
        "train": TRAIN,
        "evaluate": {"every": 12},
        "checkpoint": {"every": 8},
        "log": {"every": 4},
    }
    for key, value in more.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return values


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A masked autoencoder of the pictures."""
    out = tmp_path_factory.mktemp("runs") / "mae"
    bedplate.pretrain(_recipe("mae", out, pictures / "train", decoder={"hidden_size": 16, "num_attention_heads": 2}))
    return out


def test_pictures_without_labels_become_a_base(pretrained: Path) -> None:
    rows = read_rows(pretrained / "metrics.jsonl")
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < losses[0]
    page = (pretrained / "report.html").read_text("utf-8")
    assert "what it made of it" in page and page.count("data:image/png") >= 3
    model = bedplate.load(pretrained)
    with pytest.raises(InputError, match="predicts nothing"):
        model.predict(_picture((0, 0, 0), 0))
    assert model.embed(_picture((0, 0, 0), 0)).shape == (1, 16)


def test_telling_views_apart_makes_a_base_too(pictures: Path, tmp_path: Path) -> None:
    views = {"crop_scale": [0.4, 1.0], "colour": 0.2, "grey": 0.1}
    recipe = _recipe("simclr", tmp_path / "run", pictures / "train", model={"pooling": "mean"}, augment=views)
    bedplate.pretrain(recipe)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[-1] < losses[0]
    model = bedplate.load(tmp_path / "run")
    assert model.embed(_picture((0, 0, 0), 0)).shape == (1, 16)
    labelled = _recipe("classify_images", tmp_path / "next", pictures / "train", base=str(tmp_path / "run"))
    del labelled["model"]
    bedplate.finetune(labelled, "train.steps=2")
    assert bedplate.load(tmp_path / "next").labels == ["blue", "green", "red"]


def test_a_base_learns_labels_and_is_used(pretrained: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = _recipe(
        "classify_images",
        tmp_path / "run",
        pictures / "train",
        base=str(pretrained),
        model={"pooling": "mean"},
        data={"test_path": str(pictures / "test")},
        evaluate={"flip": True},
        augment={"shift": 1, "mixup": 0.2, "erasing": 0.2, "colour": 0.1},
    )
    recipe["model"] = {"pooling": "mean"}
    result = bedplate.finetune(recipe)
    assert result["test"]["accuracy"]["value"] > 0.8 and result["test"]["accuracy"]["n"] == 24
    assert {"accuracy", "macro_f1", "ece", "loss"} <= result["test"].keys()
    test = result["data"]["test"], result["data"]["train"], result["data"]["val"]
    assert test == (24, 48, 12)
    model = str(tmp_path / "run" / "model")
    (found,) = bedplate.predict(model, str(pictures / "test" / "red" / "0.png"))
    assert found["label"] == "red" and sum(found["scores"].values()) == pytest.approx(1)
    folder = bedplate.predict(model, str(pictures / "test" / "blue"), draw=tmp_path / "drawn")
    assert len(folder) == 8 and len(list((tmp_path / "drawn").glob("*.png"))) == 8
    measured = bedplate.evaluate(model, str(pictures / "test"))
    assert measured["metrics"]["accuracy"] == result["test"]["accuracy"]
    assert np.trace(measured["confusion"]) == round(24 * result["test"]["accuracy"]["value"])
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Reliability" in page and "data:image/png" in page
    card = (tmp_path / "run" / "model" / "README.md").read_text("utf-8")
    assert "image-classification" in card and "blue, green, red" in card and str(tmp_path) not in card
    facts = bedplate.info(model)
    assert facts["labels"] == ["blue", "green", "red"] and facts["image_size"] == [16, 16]


def test_features_are_judged_by_a_probe(pretrained: Path, pictures: Path) -> None:
    result = bedplate.evaluate(pretrained, str(pictures / "test"), probe=str(pictures / "train"))
    assert result["n"] == 24
    assert result["metrics"]["knn_accuracy"]["value"] > 0.8 and result["metrics"]["linear_accuracy"]["value"] > 0.8


def test_another_size_is_said_and_interpolated(pretrained: Path, pictures: Path, tmp_path: Path, capfd: Any) -> None:
    recipe = _recipe("classify_images", tmp_path / "run", pictures / "train", base=str(pretrained))
    bedplate.finetune({**recipe, "model": {"image_size": [24, 32]}}, "train.steps=2")
    assert "The base reads pictures of 16x16 pixels, this model of 24x32: its positions are interpolated." in (
        capfd.readouterr().err
    )
    assert bedplate.load(tmp_path / "run").config.image_size == (24, 32)


def test_a_stopped_run_goes_on_as_if_it_had_not(pictures: Path, tmp_path: Path, monkeypatch: Any) -> None:
    augment = {"shift": 2, "cutmix": 1.0, "crop_scale": [0.5, 1.0], "randaugment": [1, 5]}
    whole = _recipe("classify_images", tmp_path / "whole", pictures / "train", augment=augment, data={"store": 20})
    bedplate.pretrain(whole)
    parts = {**whole, "out": str(tmp_path / "parts")}
    monkeypatch.setattr("bedplate.train.loop.Trainer._is_over", _stops_after(16))
    with pytest.raises(Interrupted):
        bedplate.pretrain(parts)
    monkeypatch.undo()
    monkeypatch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
    bedplate.pretrain(parts, resume=True)
    rows = [
        [{k: v for k, v in row.items() if k not in TIMING} for row in read_rows(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    weights = [bedplate.load(tmp_path / name).module.state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _stops_after(step: int) -> Any:
    def is_over(self: Any) -> bool:
        if self.step == 12:  # the evaluation before
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return False

    return is_over


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two COCO folders, train and val: one or two coloured squares on grey in each of 24 pictures; ids are 7 and 3."""
    root = tmp_path_factory.mktemp("scenes")
    for seed, part in enumerate(("train", "val")):
        _compose(root / part, seed)
    return root


def _compose(root: Path, seed: int) -> None:
    root.mkdir()
    draw = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(24):
        pixels = np.full((48, 64, 3), 110, np.uint8) + draw.integers(0, 30, (48, 64, 3), dtype=np.uint8)
        for kind in draw.permutation(2)[: 1 + number % 2].tolist():
            side, x, y = (int(draw.integers(*span)) for span in ((12, 20), (0, 44), (0, 28)))
            pixels[y : y + side, x : x + side] = [(220, 30, 30), (30, 30, 220)][kind]
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": [7, 3][kind], "iscrowd": 0}
            annotations.append(row | {"bbox": [x, y, side, side], "area": side * side})
        Image.fromarray(pixels).save(root / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 48, "width": 64})
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(values))


@pytest.mark.parametrize("head", ["dense", "set"])
def test_a_detector_from_a_coco_folder(head: str, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    recipe = _recipe(
        "detect",
        tmp_path / "run",
        scenes / "train",
        model={"image_size": [48, 64], "patch_size": 8, "hidden_size": 32},
        detector={"head": head},
        augment={"scale": [0.9, 1.1]},
        data={"val_path": str(scenes / "val")},
        train={"steps": 60 if head == "dense" else 8, "batch_size": 4},
        evaluate={"every": 60},
    )
    result = bedplate.pretrain(recipe)
    assert result["data"]["train"] == 24 and result["data"]["boxes"]["train"] == 36
    metrics = result["metrics"]["map_50"]
    if head == "dense":
        assert metrics["value"] > 0.3
    model = str(tmp_path / "run" / "model")
    image = scenes / "val" / "1.png"
    (found,) = bedplate.predict(model, str(image), draw=tmp_path / "found.png", threshold=0.01)
    assert Image.open(tmp_path / "found.png").size[0] >= 64
    for row in found:
        x1, y1, x2, y2 = row["box"]
        assert row["label"] in ("red", "blue") and 0 <= x1 <= x2 <= 64 and 0 <= y1 <= y2 <= 48
    measured = bedplate.evaluate(model, str(scenes / "val"))
    assert measured["metrics"]["map_50"]["value"] == pytest.approx(metrics["value"], abs=1e-6)
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "mAP" in page and "Waiting for data" in page
    if head == "dense":
        counts = re.findall(r"true: (\d+)<.*?found: (\d+)(?: \((.*?)\))?, missed: (\d+)<", page)
        assert len(counts) == 8
        for true, found_boxes, verdicts, missed in counts:
            number = {word: int(count) for word, count in re.findall(r"(\w+): (\d+)", verdicts)}
            assert number.get("right", 0) + number.get("wrong", 0) == int(found_boxes)
            assert number.get("right", 0) + int(missed) == int(true)
        assert any("right" in verdicts for _, _, verdicts, _ in counts)


def test_a_detector_from_a_base_reads_pictures_as_it_is_scored(scenes: Path, pretrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    photos = tmp_path / "val"
    shutil.copytree(scenes / "val", photos)
    stream = io.BytesIO()
    Image.open(photos / "0.png").save(stream, "JPEG")
    (photos / "0.png").write_bytes(stream.getvalue()[:-300])  # whole at its beginning, which is looked at
    recipe = _recipe("detect", tmp_path / "run", scenes / "train", base=str(pretrained), data={"val_path": str(photos)})
    bedplate.finetune(
        {**recipe, "model": {"image_size": [48, 64]}, "augment": {}}, "train.steps=2", "train.batch_size=4"
    )
    model = bedplate.load(tmp_path / "run")
    assert isinstance(model, ImageModel) and model.processor.fit == "letterbox"  # the base's pictures are stretched


def test_a_detector_is_not_trained_for_a_test_that_cannot_score_it(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    bare, both = tmp_path / "bare", tmp_path / "both"
    shutil.copytree(scenes / "val", bare)
    values = json.loads((bare / "annotations.json").read_text())
    (bare / "annotations.json").write_text(json.dumps({**values, "annotations": []}))
    shutil.copytree(scenes / "val", both)
    part = json.loads((both / "annotations.json").read_text())
    kept = [row for row in part["images"] if row["id"] < 4]
    boxes = [row for row in part["annotations"] if row["image_id"] < 4]
    (both / "annotations.json").write_text(json.dumps({**part, "images": kept, "annotations": boxes}))
    recipe = _recipe("detect", tmp_path / "run", scenes / "train", data={"val_path": str(scenes / "val")})
    recipe |= {"model": {"image_size": [48, 64], "patch_size": 8, "hidden_size": 24}, "augment": {}}
    with pytest.raises(InputError, match="none of the 24 pictures to score once, at the end holds a box"):
        bedplate.pretrain(recipe, f"data.test_path={bare}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"every picture held out .* is also one that is scored"):
        bedplate.pretrain(recipe, f"data.test_path={scenes / 'val'}")
    result = bedplate.pretrain(recipe, f"data.test_path={both}", "train.steps=1", "train.batch_size=4")
    assert result["data"]["val"] == 20 and result["data"]["test"] == 4
    assert result["test"]["map_50"]["n"] == 4 and "test map_50" in (tmp_path / "run/model/README.md").read_text("utf-8")


def test_dropout_is_the_recipes_where_a_base_goes_on(pretrained: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = _recipe("mae", tmp_path / "run", pictures / "train", base=str(pretrained))
    del recipe["model"]
    bedplate.pretrain(recipe, "train.steps=1", "model.dropout=0.1", "augment.flip=false")
    assert bedplate.load(tmp_path / "run").config.encoder.trunk.dropout == 0.1


def test_an_autoencoders_decoder_has_what_its_encoder_has(pictures: Path, tmp_path: Path) -> None:
    decoder = {"hidden_size": 16, "num_attention_heads": 2}
    recipe = _recipe("mae", tmp_path / "run", pictures / "train", decoder=decoder, model={"dropout": 0.1})
    bedplate.pretrain(recipe, "train.steps=2")
    model = bedplate.load(tmp_path / "run")
    assert model.config.decoder.dropout == model.config.encoder.trunk.dropout == 0.1
    assert not model.embed(_picture((0, 0, 0), 0)).requires_grad


def test_bad_input(pictures: Path, pretrained: Path, tiny_model: Path, tmp_path: Path) -> None:
    def refused(message: str, verb: Any = bedplate.pretrain, *overrides: str, bare: bool = False, **more: Any) -> None:
        recipe = _recipe("classify_images", tmp_path / "no", pictures / "train", **more)
        if bare:
            del recipe["model"]
        with pytest.raises(InputError, match=message):
            verb(recipe, *overrides)
        assert not (tmp_path / "no").exists()

    refused("finetune needs a `base`", bedplate.finetune)
    refused("is a model of text", bedplate.finetune, bare=True, base=str(tiny_model))
    refused(r"brings its own network; leave model\.hidden_size out", bedplate.finetune, base=str(pretrained))
    gone = f"data.path={tmp_path / 'gone'}"  # what follows is said before pictures are read
    refused(r"model\.image_size=18x18 is not .* model\.patch_size=4", bedplate.pretrain, "model.image_size=18", gone)
    other = {"bare": True, "base": str(pretrained)}
    refused(
        "image_size=18x18 is not .* the base's patch_size=4", bedplate.finetune, "model.image_size=18", gone, **other
    )
    refused("data.store=15 is below the 16 pixels", bedplate.pretrain, "data.store=15", gone)
    refused("data.store=15 is below the 16 pixels", bedplate.finetune, "data.store=15", gone, **other)
    mae = ("task=mae", "objective.mask_ratio=0.99", gone)
    refused(r"objective: mask_ratio=0\.99 keeps 0 of 16 patches", bedplate.pretrain, *mae)
    refused("no labels", bedplate.pretrain, f"data.path={pictures / 'train' / 'red'}")
    refused("augment.mixup mixes labels", bedplate.pretrain, "task=mae", "augment.mixup=0.2")
    refused("micro_batch_size is not for task: simclr", bedplate.pretrain, "task=simclr", "train.micro_batch_size=2")
    refused("`augment` makes none", bedplate.pretrain, "task=simclr")
    refused("evaluate.metric='map'", bedplate.pretrain, "evaluate.metric=map")
    refused("did you mean 'augment.flip'", bedplate.pretrain, "augment.flop=true")
    refused("label 'teal' is not among", bedplate.pretrain, f"data.test_path={_odd(tmp_path)}")
    refused("augment.scale is not for task: classify_images", bedplate.pretrain, "augment.scale=[0.5, 1]")
    refused("fit=cover is not for task: detect", bedplate.pretrain, "task=detect", "data.fit=cover")
    refused("objective.mask_ratio is not for task", bedplate.pretrain, "objective.mask_ratio=0.5")
    refused("data.label is not for task: detect", bedplate.pretrain, "task=detect", "data.label=name")
    with pytest.raises(InputError, match="this model reads pictures and writes no text"):
        bedplate.generate(bedplate.load(pretrained), "a text")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is for models of images"):
        bedplate.predict(tiny_model, "a text", draw="x.png")
    with pytest.raises(InputError, match="labels is for models of text"):
        bedplate.predict(pretrained, "x.png", labels="a,b")


def _with_broken(pictures: Path, root: Path, *broken: str) -> Path:
    """A copy of a folder of pictures, of which some are cut in the middle."""
    shutil.copytree(pictures, root)
    for name in broken:
        (root / name).write_bytes((root / name).read_bytes()[:300])
    return root


def test_runs_count_what_they_use_and_name_what_is_broken(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    shutil.copytree(pictures / "test", tmp_path / "more" / "train")
    for i in range(36):
        shutil.copytree(pictures / "train" / "red", tmp_path / "more" / "train" / "red" / str(i))
    broken = [f"train/red/{i}/0.png" for i in range(12)]
    data = _with_broken(tmp_path / "more", tmp_path / "data", *broken) / "train"
    recipe = _recipe("classify_images", tmp_path / "run", data, data={"val_path": str(pictures / "test")})
    found = bedplate.pretrain(recipe, "train.steps=1")["data"]
    said = capfd.readouterr().err
    assert f"{found['train']} to train on" in said and len(found["broken"]) == 12
    assert found["train"] == 36 * 20 - 12, "those of the test are scored, and not learnt from"
    assert said.count("Left out as broken: ") == 10 and "12 pictures are broken" in said and "environment.json" in said
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["data"][0]["broken"] == found["broken"]


def test_pictures_without_labels_that_are_held_out_are_not_learnt_from(pictures: Path, tmp_path: Path) -> None:
    for copy in ("a", "b"):
        shutil.copytree(pictures / "test" / "red", tmp_path / "data" / copy)
    found = bedplate.pretrain(_recipe("mae", tmp_path / "run", tmp_path / "data"), "train.steps=1")["data"]
    assert found["val"] == 3 and 1 <= found["equal_pictures"] == 13 - found["train"] <= 3


def test_views_are_told_apart_from_those_of_two_held_out_pictures_at_least(pictures: Path, tmp_path: Path) -> None:
    data = _with_broken(pictures / "train", tmp_path / "data", "red/1.png")
    held = tmp_path / "held"
    held.mkdir()
    shutil.copy(pictures / "test" / "red" / "0.png", held)
    views = {"crop_scale": [0.4, 1.0], "colour": 0.2}
    recipe = _recipe("simclr", tmp_path / "run", data, augment=views, data={"val_path": str(held)})
    with pytest.raises(InputError, match=r"1 can be decoded: raise data\.val_fraction.* data\.val_fraction=0"):
        bedplate.pretrain(recipe)
    assert not (tmp_path / "run").exists()


def test_measuring_counts_what_can_be_decoded(pretrained: Path, pictures: Path, scenes: Path, tmp_path: Path) -> None:
    data = _with_broken(pictures / "test", tmp_path / "data", "red/1.png")
    train = _with_broken(pictures / "train", tmp_path / "train", "red/1.png", "blue/2.png")
    result = bedplate.evaluate(pretrained, str(data), probe=str(train))
    assert result["n"] == result["metrics"]["knn_accuracy"]["n"] == 23
    assert len(result["data"]["broken"]) == 1 and "red/1.png" in result["data"]["broken"][0]
    assert result["probe"]["n"] == 58 and len(result["probe"]["broken"]) == 2
    both = bedplate.evaluate(pretrained, str(pictures / "test"), probe=[str(train), str(pictures / "test")])
    assert both["probe"]["equal_pictures"] == 24 and both["probe"]["n"] == 58, "what is scored is not probed with"
    recipe = _recipe("classify_images", tmp_path / "run", pictures / "train")
    bedplate.pretrain(recipe, "train.steps=1")
    result = bedplate.evaluate(tmp_path / "run", str(data))
    assert result["n"] == 23 and "red/1.png" in result["data"]["broken"][0]


def test_a_detector_is_measured_on_what_can_be_decoded(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    stream = io.BytesIO()
    shutil.copytree(scenes / "val", tmp_path / "val")
    Image.open(scenes / "val" / "0.png").save(stream, "JPEG")
    (tmp_path / "val" / "0.png").write_bytes(stream.getvalue()[:-300])  # whole at its beginning, which is looked at
    recipe = _recipe("detect", tmp_path / "run", scenes / "train", data={"test_path": str(tmp_path / "val")})
    recipe |= {"model": {"image_size": [48, 64], "patch_size": 8, "hidden_size": 24}, "augment": {}}
    found = bedplate.pretrain(recipe, "train.steps=1", "train.batch_size=4")["data"]
    assert found["test"] == 23 and "0.png" in found["broken"][0]
    result = bedplate.evaluate(tmp_path / "run", str(tmp_path / "val"))
    assert result["n"] == result["metrics"]["map_50"]["n"] == 23 and "0.png" in result["data"]["broken"][0]


def _odd(root: Path) -> Path:
    (root / "odd" / "teal").mkdir(parents=True)
    (root / "odd" / "red").mkdir()
    for name in ("teal", "red"):
        _picture((0, 0, 0), 1).save(root / "odd" / name / "1.png")
    return root / "odd"
