"""A reader from questions to its answers: training, report, evaluation and use, on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import bedplate
from bedplate.cli import main as cli
from bedplate.data.tokenizer import train_tokenizer
from bedplate.errors import InputError
from bedplate.hub.reader_model import ReaderModel

COLOURS = {"blue": (40, 60, 220), "red": (220, 40, 40), "green": (40, 200, 60)}
RECIPE: dict[str, Any] = {
    "task": "answer",
    "model": {
        "vision": {"patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "language": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "context": 16},
    },
    "tokenizer": {"vocab_size": 300},
    "data": {"val_fraction": 0.25, "workers": 1},
    "train": {"precision": "fp32", "threads": 1, "batch_size": 12, "epochs": None, "steps": 120},
    "evaluate": {"every": 60},
    "log": {"every": 60},
}
RECIPE["model"]["vision"]["image_size"] = 16


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """What the machine can multiply is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noisy squares with questions about their colour, and captions."""
    root, draw = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    questions, captions = [], []
    for number in range(60):
        name = list(COLOURS)[number % len(COLOURS)]
        pixels = (draw.normal(0, 20, (20, 20, 3)) + COLOURS[name]).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        other = list(COLOURS)[(number + number // 3 % 2) % len(COLOURS)]
        asked = [
            ("what colour is it?", name, "colour"),
            (f"is it {other}?", "yes" if other == name else "no", "yes_no"),
        ]
        questions += [{"image": f"{number}.png", "question": q, "answer": a, "kind": k} for q, a, k in asked]
        captions.append({"image": f"{number}.png", "caption": f"a {name} square"})
    for file, rows in (("questions.jsonl", questions), ("captions.jsonl", captions)):
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def recipe(path: Path, folder: Path, **changes: Any) -> Path:
    """A recipe file whose run goes beside it."""
    values = {**RECIPE, "out": str(path.parent / "run"), **changes}
    values["data"] = {**RECIPE["data"], "path": str(folder), **changes.get("data", {})}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    path = recipe(tmp_path_factory.mktemp("reader") / "recipe.yaml", data)
    return bedplate.pretrain(path), path.parent / "run"


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    monkeypatch.setattr("sys.argv", ["bedplate", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    assert caught.value.code == 0, captured.err
    return captured.out


def test_training_learns_colours_and_leaves_a_whole_record(trained: tuple[dict[str, Any], Path]) -> None:
    result, out = trained
    assert result["metrics"]["accuracy"]["value"] > 0.9
    scored = json.loads((out / "scored.json").read_text())
    assert scored["on"] == "val" and set(scored["kinds"]) == {"caption", "colour", "yes_no"}
    assert scored["baselines"]["question"]["accuracy"]["value"] < 0.75
    assert scored["captions"]["exact_match"]["value"] == scored["kinds"]["caption"]["accuracy"]["value"]
    card, page = (out / "model" / "README.md").read_text(), (out / "report.html").read_text()
    assert "colour accuracy" in card and "model.ask(" in card
    assert "what colour is it?" in page and "Question alone" in page
    assert {path.name for path in (out / "model").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    }


def test_the_verbs_use_it(
    trained: tuple[dict[str, Any], Path],
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, picture = trained[1], data / "1.png"  # a red one
    assert run(capsys, monkeypatch, "caption", picture, "--model", model).strip() == "a red square"
    asked = json.loads(
        run(capsys, monkeypatch, "ask", picture, "what colour is it?", "is it red?", "--model", model, "--json")
    )
    assert [row["text"] for row in asked] == ["red", "yes"] and all(0.2 < row["score"] <= 1 for row in asked)
    assert asked[0]["question"] == "what colour is it?"
    beams = json.loads(
        run(capsys, monkeypatch, "caption", picture, data / "0.png", "--model", model, "--beams", 3, "--json")
    )
    assert [row["text"] for row in beams] == ["a red square", "a blue square"]
    assert bedplate.ask(picture, ["what colour is it?", "is it red?"], model=model) == asked
    assert bedplate.caption(Image.open(picture), model=model)[0]["text"] == "a red square"
    assert bedplate.predict(model, [picture])[0]["text"] == "a red square"
    assert bedplate.info(model)["context"] == 16


def test_captions_leave_out_broken_pictures_of_a_folder_and_say_so(
    trained: tuple[dict[str, Any], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def caption(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["bedplate", "caption", *map(str, arguments), "--model", str(trained[1])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capsys.readouterr())

    for number in (0, 1, 2):
        shutil.copy(data / f"{number}.png", tmp_path)
    cut = tmp_path / "1.png"
    cut.write_bytes(cut.read_bytes()[:300])
    code, out, err = caption(tmp_path)
    assert code == 0 and out == f"{tmp_path / '0.png'}: a blue square\n{tmp_path / '2.png'}: a green square\n"
    told = err.splitlines()
    assert told[0].startswith(f"Left out: {cut}: truncated") and "1 of 3 pictures cannot be decoded" in told[1]
    assert len(told) == 2
    code, out, err = caption(tmp_path, "--json")
    assert code == 0 and err.splitlines() == told
    assert [row and row["text"] for row in json.loads(out)] == ["a blue square", None, "a green square"]
    code, out, err = caption(tmp_path / "0.png", cut)  # a picture that is named
    assert (code, out) == (2, "") and err.startswith(f"Error: {cut}: truncated")
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    code, out, err = caption(tmp_path, "--json")
    assert (code, out) == (2, "") and "none of the 3 pictures can be decoded; the first" in err


def test_evaluate_is_the_training_s_own_measure(
    trained: tuple[dict[str, Any], Path],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = json.loads(run(capsys, monkeypatch, "evaluate", trained[1], "--data", data / "questions.jsonl", "--json"))
    assert result["n"] == 120 and result["pictures"] == 60 and set(result["kinds"]) == {"colour", "yes_no"}
    model = bedplate.load(trained[1])
    assert isinstance(model, ReaderModel)
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    given = model.predict([data / row["image"] for row in rows], [row["question"] for row in rows])
    right = np.mean([row["answer"] == found["text"] for row, found in zip(rows, given, strict=True)])
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(right)
    shown = run(capsys, monkeypatch, "evaluate", trained[1], "--data", data)
    assert "captions bleu_4" in shown and "the most frequent answer to the same question" in shown
    copied = tmp_path / "questions"
    shutil.copytree(data, copied)
    (copied / rows[0]["image"]).write_bytes(b"no picture")
    shown = run(capsys, monkeypatch, "evaluate", trained[1], "--data", copied / "questions.jsonl")
    assert "questions about 59 pictures" in shown and "cannot be decoded: 1 of the pictures, the first: " in shown
    for part in ("train", "test"):
        shutil.copytree(data, tmp_path / "parts" / part)
    with pytest.raises(InputError, match=r"parts: has a part for training beside others .* such as .*parts.test"):
        bedplate.evaluate(trained[1], tmp_path / "parts")


def test_a_run_goes_on_from_a_reader_and_from_its_parts(
    trained: tuple[dict[str, Any], Path], data: Path, tmp_path: Path
) -> None:
    out = trained[1]
    own: dict[str, Any] = {"train": {**RECIPE["train"], "steps": 2}, "evaluate": {"every": 2}}
    bare = {"model": {}, "tokenizer": {}}
    whole = bedplate.finetune(recipe(tmp_path / "a.yaml", data, base=str(out), out=str(tmp_path / "a"), **own, **bare))
    assert whole["metrics"]["accuracy"]["value"] > 0.9
    language = {"model": {"language": RECIPE["model"]["language"], "freeze_vision": True}}
    eyes = recipe(tmp_path / "b.yaml", data, vision_base=str(out), out=str(tmp_path / "b"), **own, **language)
    bedplate.pretrain(eyes)
    before, after = bedplate.load(out), bedplate.load(tmp_path / "b")
    for name, value in before.module.vision.state_dict().items():
        assert torch.equal(value, after.module.vision.state_dict()[name]), name


def test_a_run_from_a_reader_takes_the_fit_of_the_recipe(
    trained: tuple[dict[str, Any], Path], data: Path, tmp_path: Path
) -> None:
    quick: dict[str, Any] = {"train": {**RECIPE["train"], "steps": 1}, "model": {}, "tokenizer": {}}
    for name, own, fit in (("own", {"fit": "cover"}, "cover"), ("base", {}, "stretch")):
        path = recipe(
            tmp_path / f"{name}.yaml", data, base=str(trained[1]), out=str(tmp_path / name), data=own, **quick
        )
        bedplate.pretrain(path)
        found = bedplate.load(tmp_path / name)
        assert isinstance(found, ReaderModel) and found.processor.fit == fit


def test_a_run_whose_tokenizer_is_another_is_not_resumed(data: Path, tmp_path: Path) -> None:
    for steps, texts in ((2, ["red", "blue"]), (4, ["what colour is it?", "a square"])):
        train_tokenizer(texts * 3, 280).save(str(tmp_path / "tokenizer.json"))
        path = recipe(
            tmp_path / "recipe.yaml",
            data,
            tokenizer={"path": str(tmp_path / "tokenizer.json")},
            train={**RECIPE["train"], "steps": steps},
            schedule={"decay": 0.0},
            checkpoint={"every": 2},
        )
        if steps == 2:
            bedplate.pretrain(path)
    with pytest.raises(InputError, match="data"):
        bedplate.pretrain(path, resume=True)


def test_one_question_is_asked_of_all_pictures_of_a_file(trained: tuple[dict[str, Any], Path], data: Path) -> None:
    model = bedplate.load(trained[1])
    assert len(bedplate.predict(model, file=data, question="what colour is it?")) == 60
    with pytest.raises(InputError, match="question is a list, and with `file` one question is asked of all pictures"):
        bedplate.predict(model, file=data, question=["what colour is it?"] * 60)


def test_a_resumed_run_is_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    quick: dict[str, Any] = {
        "checkpoint": {"every": 2},
        "evaluate": {"every": 2},
        "data": {"questions_per_picture": 1},
    }
    for name, steps in (("once", (4,)), ("twice", (2, 4))):
        for number, count in enumerate(steps):
            path = recipe(
                tmp_path / f"{name}.yaml",
                data,
                out=str(tmp_path / name),
                train={**RECIPE["train"], "steps": count},
                schedule={"decay": 0.0},
                **quick,
            )
            bedplate.pretrain(path, resume=number > 0)
    once, twice = (bedplate.load(tmp_path / name).module.state_dict() for name in ("once", "twice"))
    assert all(torch.equal(value, twice[name]) for name, value in once.items())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"base": "zoo:x"}, "base=zoo:x brings its own network; leave model.vision.hidden_size out, or base"),
        ({"model": {"freeze_vision": True}}, "freeze_vision keeps what a base has learnt; give vision_base or base"),
        ({"augment": {"flip": "left"}}, "augment.flip"),
        ({"parallel": {"shard": 2}}, "parallel.shard=2: each rank holds the whole of a reader"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        bedplate.pretrain(recipe(tmp_path / "recipe.yaml", data, **changes))


def test_bases_of_the_wrong_kind_are_refused(trained: tuple[dict[str, Any], Path], data: Path, tmp_path: Path) -> None:
    bare: dict[str, Any] = {"model": {}, "tokenizer": {}}
    for key, complaint in (("text_base", "is no model of text"),):
        with pytest.raises(InputError, match=complaint):
            bedplate.pretrain(recipe(tmp_path / "recipe.yaml", data, **{key: str(trained[1])}, **bare))
    model = bedplate.load(trained[1])
    with pytest.raises(InputError, match="is no reader"):
        bedplate.caption(data / "1.png", model=_vision(model, tmp_path))
    with pytest.raises(InputError, match="is no reader; give a model that sees as vision_base"):
        bedplate.pretrain(recipe(tmp_path / "recipe.yaml", data, base=str(tmp_path / "vision"), **bare))


def _vision(model: Any, folder: Path) -> Path:
    """The reader's own vision model as a directory."""
    from bedplate.hub.vision_directory import save_vision_directory

    save_vision_directory(folder / "vision", model.module.vision, model.processor)
    return folder / "vision"
