"""From pictures with names to drawings: an image tokenizer, a model that draws by it, the verb, its measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import bedplate
from bedplate.api.draw import targets
from bedplate.errors import InputError, Interrupted
from bedplate.hub.draw_model import DrawModel
from bedplate.train.log import read_rows

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220), "black": (0, 0, 0)}
SHAPES = ("square", "disc", "bar", "frame")
TRAIN = {"precision": "fp32", "threads": 1, "batch_size": 8, "epochs": None}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        yield


def _picture(shape: str, colour: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGB", (16, 16), "white")
    pen = ImageDraw.Draw(image)
    if shape == "square":
        pen.rectangle((3, 3, 12, 12), fill=colour)
    elif shape == "disc":
        pen.ellipse((3, 3, 12, 12), fill=colour)
    elif shape == "bar":
        pen.rectangle((0, 6, 15, 9), fill=colour)
    else:
        pen.rectangle((3, 3, 12, 12), outline=colour, width=2)
    return image


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with their names, of two parts each, beside them."""
    folder = tmp_path_factory.mktemp("pairs")
    for shape in SHAPES:
        for name, colour in COLOURS.items():
            _picture(shape, colour).save(folder / f"{shape}-{name}.png")
            (folder / f"{shape}-{name}.txt").write_text(f"{shape}: {name}", "utf-8")
    return folder


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tokens"
    recipe: dict[str, Any] = {
        "task": "image_tokens",
        "out": str(out),
        "model": {"image_size": 16, "patch_size": 4, "levels": [5, 4], "width": 32},
        "data": {"path": str(pairs), "val_fraction": 0.0, "workers": 1},
        "train": TRAIN | {"steps": 150},
        "optimizer": {"learning_rate": 5e-3},
    }
    bedplate.pretrain(recipe)
    return out


def _recipe(out: Path, pairs: Path, tokens: Path, **more: Any) -> dict[str, Any]:
    return {
        "task": "draw",
        "out": str(out),
        "tokenizer_base": str(tokens),
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "text_length": 12,
            "vocab_size": 300,
            "dropout": 0.0,
        },
        "data": {"path": str(pairs), "hold_out": 2, "workers": 1},
        "train": TRAIN | {"steps": 150},
        "evaluate": {"every": 50},
        "checkpoint": {"every": 25},
        "log": {"every": 25},
    } | more


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory, pairs: Path, tokens: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "draw"
    bedplate.pretrain(_recipe(out, pairs, tokens))
    return out


def test_it_learns_and_leaves_one_directory_and_a_report(drawing: Path, pairs: Path) -> None:
    rows = [row for row in read_rows(drawing / "metrics.jsonl") if "loss" in row]
    assert rows[-1]["loss"] < rows[0]["loss"] / 3
    model = bedplate.load(drawing)
    assert isinstance(model, DrawModel)
    assert len(model.held_out) == 2
    page = (drawing / "report.html").read_text("utf-8")
    assert "Names that training saw" in page and "Names that it never saw" in page
    assert page.count("data:image/png") == 6 * 4 + 2 * 4 and model.held_out[0] in page
    card = (drawing / "model" / "README.md").read_text("utf-8")
    assert "text-to-image" in card and str(pairs) not in card


def test_what_it_draws_is_what_its_name_says(drawing: Path, pairs: Path) -> None:
    model = bedplate.load(drawing)
    assert isinstance(model, DrawModel)
    names = [f"{shape}: {name}" for shape in SHAPES for name in COLOURS]
    names = [name for name in names if name not in model.held_out]
    real = model.image_tokens.encode([pairs / f"{name.replace(': ', '-')}.png" for name in names])
    drawn = model.image_tokens.encode(model.draw(names, guidance=1.0, temperature=0.0))
    alike = (drawn[:, None] == real).float().mean((2, 3))  # (drawings, pictures)
    assert alike.diagonal().mean() > alike.mean() + 0.2


def test_a_resumed_run_ends_with_the_same_weights(
    drawing: Path, pairs: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = iter(range(60))

    def stop(self: Any, batch: Any) -> int:
        if next(steps, None) is None:
            raise Interrupted("stopped")
        return 1

    recipe = _recipe(tmp_path / "run", pairs, tokens)
    with monkeypatch.context() as patch:
        patch.setattr("bedplate.tasks.draw.Draw.flops", stop)
        with pytest.raises(Interrupted):
            bedplate.pretrain(recipe)
    bedplate.pretrain(recipe, resume=True)
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (tmp_path / "run", drawing))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_base_goes_on(drawing: Path, pairs: Path, tmp_path: Path) -> None:
    recipe = {key: value for key, value in _recipe(tmp_path / "on", pairs, drawing).items() if key != "tokenizer_base"}
    result = bedplate.finetune(recipe | {"base": str(drawing), "model": {}, "train": TRAIN | {"steps": 1}})
    first = read_rows(tmp_path / "on" / "metrics.jsonl")[0]
    best = min(row["val_loss"] for row in read_rows(drawing / "metrics.jsonl") if row.get("val_loss") and row["step"])
    assert result["steps"] == 1 and first["val_loss"] == pytest.approx(best, abs=1e-4)


def test_a_model_that_draws_lends_its_image_tokenizer(drawing: Path, pairs: Path, tmp_path: Path) -> None:
    bedplate.pretrain(_recipe(tmp_path / "anew", pairs, drawing) | {"train": TRAIN | {"steps": 1}})
    ours, theirs = (load_file(out / "model" / "model.safetensors") for out in (tmp_path / "anew", drawing))
    lent = [name for name in theirs if name.startswith("image_tokens.")]
    assert lent and all(torch.equal(ours[name], theirs[name]) for name in lent)
    assert not torch.equal(ours["dalle.embed.weight"], theirs["dalle.embed.weight"])


def test_the_verb_writes_files_and_never_over_others(drawing: Path, tmp_path: Path) -> None:
    rows = bedplate.draw("square: red", drawing, out=tmp_path / "a.png", n=2, seed=5)
    assert [(row["seed"], Path(row["file"]).name) for row in rows] == [(5, "a-1.png"), (6, "a-2.png")]
    assert Image.open(tmp_path / "a-1.png").tobytes() == rows[0]["image"].tobytes()
    (alone,) = bedplate.draw("square: red", drawing, seed=6)
    assert alone["file"] is None and alone["image"].tobytes() == rows[1]["image"].tobytes()
    with pytest.raises(InputError, match=r"a-1.png: the file exists"):
        bedplate.draw("square: red", drawing, out=tmp_path / "a.png", n=2)
    again = bedplate.draw("square: blue", drawing, out=tmp_path / "a.png", n=2, overwrite=True)
    assert Image.open(tmp_path / "a-1.png").tobytes() == again[0]["image"].tobytes()
    folder = bedplate.draw(["square: red", "Bar!"], drawing, out=tmp_path / "folder", prefix=tmp_path / "a-1.png")
    assert [Path(row["file"]).name for row in folder] == ["square-red.png", "bar.png"]


def test_files_have_names_of_their_own() -> None:
    names = [path.name for path in targets(Path("nowhere"), ["a b", "A  B", "!"], 1, overwrite=False)]
    assert names == ["a-b.png", "a-b-again.png", "drawing.png"]
    assert [path.name for path in targets(Path("x.jpg"), ["a", "b"], 1, overwrite=False)] == ["x-1.jpg", "x-2.jpg"]
    with pytest.raises(InputError, match="name of a picture"):
        targets(Path("x.txt"), ["a"], 1, overwrite=False)


def test_the_image_tokenizer_is_measured_on_pictures(tokens: Path, pairs: Path) -> None:
    measured = bedplate.evaluate(tokens, pairs)
    assert measured["n"] == 16 and measured["metrics"]["psnr"]["value"] > 12
    assert measured["data"] == {"dropped": {"files of other kinds": 16}, "broken": []}
    with pytest.raises(InputError, match="batch_size=0: give 1 or more"):
        bedplate.load(tokens).encode([], batch_size=0)
    with pytest.raises(InputError, match="label is no option"):
        bedplate.evaluate(tokens, pairs, label="x")


@pytest.fixture(scope="module")
def clip(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judges") / "clip"
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = {
        "task": "contrast",
        "out": str(out),
        "model": {"text": tower | {"vocab_size": 300}, "image": tower | {"image_size": 16}, "projection_dim": 16},
        "data": {"path": str(pairs), "val_fraction": 0.0, "workers": 1},
        "train": TRAIN | {"steps": 1},
    }
    bedplate.pretrain(recipe)
    return out


def test_a_clip_judges_drawings(drawing: Path, pairs: Path, clip: Path) -> None:
    result = bedplate.evaluate(drawing, pairs, judge=clip, names=5, each=2)
    assert result["n"] == 10 and result["names"] == 5
    told = [f"held_out_{part}" for part in ("first", "second", "both")]
    shares = ("accuracy", "real_accuracy", "copied", *told, *(f"real_{name}" for name in told))
    assert {*shares, "frechet", "frechet_copy"} == result["metrics"].keys()
    assert all(0 <= result["metrics"][name]["value"] <= 1 for name in shares)
    assert result["metrics"]["held_out_both"]["n"] == 4


def test_a_clip_chooses_drawings(drawing: Path, pairs: Path, clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another"  # the same CLIP in another place
    shutil.copytree(clip, copy)
    result = bedplate.evaluate(drawing, pairs, judge=clip, names=5, each=2, best_of=4, ranker=copy)
    assert result["n"] == 10 and {"accuracy", "held_out_both"} < result["metrics"].keys()
    judge = bedplate.load(clip)
    wanted = judge.text_vectors(["red"])[0]
    (row,) = bedplate.draw("red", drawing, best_of=8, ranker=clip, seed=2)
    others = bedplate.draw("red", drawing, n=8, seed=16)
    near = [float(judge.embed([each["image"]])[0] @ wanted) for each in others]
    assert row["seed"] == 16 + near.index(max(near)) and min(near) < max(near)
    assert row["image"].tobytes() == others[row["seed"] - 16]["image"].tobytes()


def test_a_ranker_that_cannot_choose_is_refused(drawing: Path, tokens: Path, pairs: Path, clip: Path) -> None:
    with pytest.raises(InputError, match="give best_of"):
        bedplate.draw("x", drawing, ranker=clip, best_of=1)
    with pytest.raises(InputError, match="best_of=0"):
        bedplate.draw("x", drawing, best_of=0)
    with pytest.raises(InputError, match=r"ranker=.* does not know texts and pictures"):
        bedplate.draw("x", drawing, best_of=2, ranker=tokens)
    with pytest.raises(InputError, match=r"best_of='2': must be a whole number"):
        bedplate.draw("x", drawing, best_of="2")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not judge them"):
        same = bedplate.load(clip)
        bedplate.evaluate(drawing, pairs, judge=same, best_of=2, ranker=same)
    with pytest.raises(InputError, match="does not judge them"):
        bedplate.evaluate(drawing, pairs, judge=f"{clip}/", best_of=2, ranker=clip)
    with pytest.raises(InputError, match="give both, or neither"):
        bedplate.evaluate(drawing, pairs, judge=clip, best_of=2)
    with pytest.raises(InputError, match="what chose the drawings does not judge them"):
        bedplate.evaluate(drawing, pairs, judge=clip, best_of=2, ranker=clip)
    with pytest.raises(InputError, match="best_of is no option of a CLIP"):
        bedplate.evaluate(clip, pairs, best_of=2)


def test_what_is_not_for_drawing_is_refused(
    drawing: Path, tokens: Path, pairs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="give a CLIP as judge"):
        bedplate.evaluate(drawing, pairs)
    with pytest.raises(InputError, match="does not know texts and pictures"):
        bedplate.evaluate(drawing, pairs, judge=tokens)
    with pytest.raises(InputError, match="does not draw"):
        bedplate.draw("x", tokens)
    with pytest.raises(InputError, match="nothing to draw"):
        bedplate.draw([], drawing)
    with pytest.raises(InputError, match="give a prefix"):
        bedplate.draw("x", drawing, keep=0.5)
    with pytest.raises(InputError, match="is no image tokenizer"):
        bedplate.pretrain(_recipe(tmp_path / "run", pairs, tiny_model))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tokenizer_base=null", "give either tokenizer_base"),
        ("data.hold_out=99", "data.hold_out=99: only"),
        ("model.num_attention_heads=3", "not a multiple"),
        ("objective.templates=[x]", "templates"),
        ("data.val_path=x", "leave data.hold_out"),
        ("data.fit=cover", "data.fit"),
        ("parallel.shard=2", "shard"),
    ],
)
def test_a_bad_recipe_is_refused(pairs: Path, tokens: Path, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        bedplate.pretrain(_recipe(tmp_path / "run", pairs, tokens), override)
    assert not (tmp_path / "run").exists()


def test_the_text_may_begin_with_a_language_models_words(
    pairs: Path, tokens: Path, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path / "run", pairs, tokens, train=TRAIN | {"steps": 1})
    recipe["model"] = recipe["model"] | {"text_base": str(tiny_model), "text_length": 24}
    recipe["optimizer"] = {"learning_rate": 1e-9, "weight_decay": 0.0}
    bedplate.pretrain(recipe)
    model, text = bedplate.load(tmp_path / "run"), bedplate.load(tiny_model)
    assert isinstance(model, DrawModel)
    torch.testing.assert_close(model.module.dalle.embed.weight, text.module.embed.weight)
    assert model.tokenizer.to_str() == text.tokenizer.to_str()
    with pytest.raises(InputError, match="its width is 32"):
        bedplate.pretrain(recipe | {"out": str(tmp_path / "no")}, "model.hidden_size=64")


def test_json_of_the_metrics_is_whole(drawing: Path) -> None:
    assert json.loads((drawing / "environment.json").read_text("utf-8"))["data"][0]["val"] == 2
