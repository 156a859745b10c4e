"""A tiny CLIP from recipe to report: coloured shapes with texts."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bedplate
from bedplate.errors import InputError
from bedplate.train.log import read_rows

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (40, 60, 220), "yellow": (230, 220, 50)}
Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy pictures of four colours, of which one is broken and one has no text."""
    root, draw = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(48):
        name = list(COLOURS)[number % 4]
        pixels = (draw.normal(0, 40, (8, 8, 3)) + COLOURS[name]).clip(0, 255).astype(np.uint8)
        picture = root / f"{number:02}.png"
        Image.fromarray(pixels).save(picture)
        picture.with_suffix(".txt").write_text(f"{name}\n{name} thing")
    (root / "20.png").write_bytes(b"broken")
    (root / "21.txt").unlink()
    return root


@pytest.fixture(scope="module")
def make(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    cache = tmp_path_factory.mktemp("cache")

    def recipe(out: Path, **sections: Any) -> dict[str, Any]:
        tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        values: dict[str, Any] = {
            "task": "contrast",
            "out": str(out),
            "model": {
                "text": {**tower, "vocab_size": 280, "context": 24},
                "image": {**tower, "image_size": 8, "patch_size": 4},
                "projection_dim": 16,
            },
            "data": {"path": str(pairs), "val_path": str(pairs), "workers": 1, "cache": str(cache)},
            "objective": {"templates": ["{}", "a picture of {}"]},
            "train": {"precision": "fp32", "threads": 1, "batch_size": 16, "epochs": None, "steps": 60},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3},
            "evaluate": {"every": 30},
            "log": {"every": 1},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
        return values

    return recipe


@pytest.fixture(scope="module")
def split(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The pictures to train on, and those to validate: tables of both."""
    root = tmp_path_factory.mktemp("tables")
    files = sorted(pairs.glob("*.png"))
    for part, rows in (("train", files[:36]), ("val", files[36:])):
        with (root / f"{part}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "caption", "kind"])
            for file in rows:
                text = file.with_suffix(".txt")
                lines = text.read_text().splitlines() if text.exists() else [""]
                writer.writerow([str(file), lines[0], lines[-1]])
    return root / "train.csv", root / "val.csv"


@pytest.fixture(scope="module")
def trained(make: Make, split: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("run") / "clip"
    data = {"path": str(split[0]), "val_path": str(split[1]), "text": "caption,kind"}
    return bedplate.pretrain(make(out, data=data))


def test_it_learns_which_texts_belong_to_which_pictures(trained: dict[str, Any]) -> None:
    metrics = trained["metrics"]
    assert metrics["image_to_text_r1"]["value"] >= 0.9 and metrics["text_to_image_r1"]["value"] >= 0.9
    assert {f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} < set(metrics)
    data = trained["data"]
    assert data["groups"] == 4 and data["train"] == 34 and data["val"] == 12
    assert data["dropped"] == {"pictures without a text": 1}
    assert len(data["broken"]) == 1 and "20.png" in data["broken"][0]
    out = Path(trained["out"])
    page, card = (out / "report.html").read_text("utf-8"), (out / "model" / "README.md").read_text("utf-8")
    assert page.count("data:image/") >= 12 and "Recall at 10" in page
    assert "pipeline_tag: zero-shot-image-classification" in card and "CLIPModel" in card
    losses = [row["loss"] for row in read_rows(out / "metrics.jsonl") if "loss" in row]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


def test_pictures_of_a_group_may_be_positives_of_each_other(
    make: Make, split: tuple[Path, Path], tmp_path: Path
) -> None:
    with_mates = {
        "data": {"path": str(split[0]), "val_path": str(split[1]), "text": "caption,kind"},
        "objective": {"image_weight": 1.0},
    }
    result = bedplate.pretrain(make(tmp_path / "run", **with_mates))
    assert result["metrics"]["image_to_text_r1"]["value"] >= 0.9
    with pytest.raises(InputError, match="give an even number"):
        bedplate.pretrain(make(tmp_path / "odd", **with_mates, train={"batch_size": 9}))


def test_the_model_is_used_and_measured(trained: dict[str, Any], split: tuple[Path, Path], pairs: Path) -> None:
    model = bedplate.load(trained["model"])
    (found,) = model.predict([pairs / "00.png"], labels="red,green,blue,yellow")
    assert found["label"] == "red" and len(found["scores"]) == 4
    assert model.templates == ("{label}", "a picture of {label}")
    assert np.array_equal(model.embed(["Red THING"]), model.embed(["red thing"]))
    result = bedplate.evaluate(trained["model"], [str(split[1])], label="caption")
    assert result["unit"] == "pictures" and result["n"] == 12 and result["labels"] == sorted(COLOURS)
    assert result["metrics"]["accuracy"]["value"] >= 0.9 and np.trace(result["confusion"]) >= 11
    assert result["baselines"]["chance"]["accuracy"]["value"] == 0.25
    assert result["baselines"]["majority"]["accuracy"]["value"] == 0.25
    said = {"red": "red thing", "green": "green thing", "blue": "blue thing", "yellow": "yellow thing"}
    assert bedplate.evaluate(model, [str(split[1])], label="caption", labels=said)["metrics"]["accuracy"]["value"] > 0.8
    with pytest.raises(InputError, match="label 'red' is none of"):
        bedplate.evaluate(model, [str(split[1])], label="caption", labels="green,blue,yellow")
    result = bedplate.evaluate(model, [str(split[1])], column="caption")
    assert result["unit"] == "pairs" and result["data"]["texts"] == 4
    assert result["metrics"]["image_to_text_r1"]["value"] >= 0.9
    assert result["metrics"]["image_to_text_r5"]["value"] == 1, "there are but four texts"
    assert result["baselines"]["chance"]["image_to_text_r1"]["value"] == 0.25
    beside = bedplate.evaluate(model, [str(pairs)])
    assert beside["unit"] == "pairs" and beside["n"] == 46 and len(beside["data"]["broken"]) == 1
    assert beside["data"]["cut"] == 0
    long = bedplate.evaluate(model, [str(split[1])], column="caption", template="{label} " + "of a thing " * 20)
    assert long["data"]["cut"] == long["data"]["texts"] == 4
    with pytest.raises(InputError, match="column names texts"):
        bedplate.evaluate(model, [str(split[1])], column="caption", label="kind")


def test_the_shell_prints_what_was_measured(
    trained: dict[str, Any], split: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from bedplate.cli.main import app

    arguments = ["evaluate", trained["model"], "--data", str(split[1]), "--label", "caption"]
    app(arguments, standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("accuracy: ") and "accuracy of chance: 0.2500" in lines and "12 pictures" in lines
    assert lines[-1].startswith("yellow: predicted as ")
    app(["evaluate", trained["model"], "--data", str(split[1]), "--column", "caption"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "text_to_image_r10: 1.0000" in printed and "12 pairs" in printed


def test_a_batch_in_parts_is_the_same_run(make: Make, tmp_path: Path, split: tuple[Path, Path]) -> None:
    data, few = {"path": str(split[0]), "val_path": str(split[1])}, {"steps": 4, "ema": 0.5}
    augment = {"crop_scale": [0.5, 1.0], "colour": 0.3}
    for name, more in (("whole", {}), ("parts", {"micro_batch_size": 4})):
        bedplate.pretrain(make(tmp_path / name, data=data, train=few | more, augment=augment))
    whole, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    for name, weight in whole.items():
        if not name.endswith("k_proj.bias"):  # attention does not depend on it: Adam follows what rounding leaves
            torch.testing.assert_close(parts[name], weight, rtol=0, atol=1e-4, msg=name)
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        for key in {"loss", "val_loss", "gradient_norm"} & one.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-4), key


def test_a_run_goes_on_from_a_checkpoint(make: Make, tmp_path: Path) -> None:
    few = {"steps": 6}
    options = {"augment": {"crop_scale": [0.5, 1.0]}, "checkpoint": {"every": 3}, "data": {"val_path": None}}
    bedplate.pretrain(make(tmp_path / "straight", train=few, **options))
    bedplate.pretrain(make(tmp_path / "parts", train={"steps": 3}, schedule={"decay": 0, "warmup": 0}, **options))
    with pytest.raises(InputError, match=r"the run began with model\."):
        bedplate.pretrain(make(tmp_path / "parts", train=few, model={"projection_dim": 8}, **options), resume=True)
    bedplate.pretrain(make(tmp_path / "again", train=few, schedule={"decay": 0, "warmup": 0}, **options))
    bedplate.pretrain(make(tmp_path / "parts", train=few, schedule={"decay": 0, "warmup": 0}, **options), resume=True)
    again, parts = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("again", "parts"))
    torch.testing.assert_close(parts, again, rtol=0, atol=0)


def test_concepts_are_held_out_whole(make: Make, tmp_path: Path) -> None:
    data = {"val_path": None, "val_fraction": 0.2}
    result = bedplate.pretrain(make(tmp_path / "out", data=data, train={"steps": 1}))
    assert result["data"]["val"] == 12 and result["data"]["train"] == 34, "all of one colour"
    assert result["metrics"]["image_to_text_r1"]["value"] == 1, "there is one group to be found"


def test_towers_and_models_that_were_trained_before(
    make: Make, tmp_path: Path, trained: dict[str, Any], split: tuple[Path, Path]
) -> None:
    data = {"path": str(split[0]), "val_path": str(split[1])}
    further = make(tmp_path / "further", data=data, train={"steps": 1}, base=trained["model"])
    del further["model"]
    metrics = bedplate.pretrain(further)["metrics"]
    assert metrics["image_to_text_r1"]["value"] >= 0.8, "it goes on from what it knew"
    own = make(tmp_path / "own", train={"steps": 1}, data=data)
    own["model"] = {"image_base": trained["model"], "image": {"image_size": 16}, "text": own["model"]["text"]}
    result = bedplate.pretrain(own)
    vision = json.loads((Path(result["model"]) / "config.json").read_text())["vision_config"]
    assert vision["image_size"] == 16 and vision["hidden_size"] == 16


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"templates": ["a picture"]}}, r"objective.templates: 'a picture' must have one \{\}"),
        ({"parallel": {"shard": 2}}, "parallel.shard=2: each rank holds the whole of a contrastive model"),
        ({"base": "some/dir"}, r"base=some/dir brings its own network; leave model\."),
        ({"model": {"image_base": "zoo:vision-mini"}}, "leave model.image.patch_size out, or that base"),
        ({"model": {"text": {"hidden_size": 10, "num_attention_heads": 3}}}, "model.text.hidden_size=10 is not a"),
        ({"data": {"caption": "x"}}, "unknown key 'data.caption'"),
        ({"objective": {"loss": "triplet"}}, "objective.loss: input should be 'infonce' or 'siglip'"),
        ({"data": {"path": "nowhere"}}, "nowhere: no such file or folder"),
        ({"model": {"text_base": "zoo:vision-mini", "text": {}}}, "is no model of text with a tokenizer"),
    ],
)
def test_a_wrong_recipe_is_told_by_its_key(make: Make, tmp_path: Path, sections: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bedplate.pretrain(make(tmp_path / "no", **sections))
    assert not (tmp_path / "no").exists()


def test_what_is_scored_at_the_end_does_not_choose_the_epoch(make: Make, tmp_path: Path, pairs: Path) -> None:
    files = [file for file in sorted(pairs.glob("*.png")) if file.stem not in ("20", "21")]
    tables = {}
    for name, part in (("train", files[:20]), ("val", files[20:32]), ("test", files[26:40])):
        tables[name] = tmp_path / f"{name}.csv"
        with tables[name].open("w", newline="") as file:
            rows = [(str(each), each.with_suffix(".txt").read_text().split("\n")[0]) for each in part]
            csv.writer(file).writerows([("file", "text"), *rows])
    data = {"path": str(tables["train"]), "val_path": str(tables["val"]), "test_path": str(tables["test"])}
    recipe = make(tmp_path / "run", data=data, train={"steps": 2}, evaluate={"every": 2})
    result = bedplate.pretrain(recipe)
    assert result["data"]["val"] == 6 and result["data"]["test"] == 14


def test_one_meaning_is_no_contrast(make: Make, tmp_path: Path, pairs: Path) -> None:
    table = tmp_path / "one.csv"
    files = [file for file in sorted(pairs.glob("*.png")) if file.stem not in ("20", "21")][:6]
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "text"), *((str(file), "a thing") for file in files)])
    with pytest.raises(InputError, match=r"6 pictures of one meaning are left to train on \(0 are also scored\)"):
        bedplate.pretrain(make(tmp_path / "run", data={"path": str(table), "val_path": None, "val_fraction": 0.0}))
