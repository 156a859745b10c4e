"""The README's commands, run as they stand in an empty folder; only sizes are made small."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bedplate.api import quickstart
from bedplate.cli.main import app
from bedplate.data.scene_questions import ask_scenes
from bedplate.data.shapes import shapes

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "tokenizer.vocab_size=300",
    "train.steps=3",
    "train.batch_size=4",
    "train.sequence_length=32",
    "train.threads=1",
    "train.precision=fp32",
    "evaluate.batches=1",
    "evaluate.sample_tokens=4",
    "checkpoint.every=2",
]


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
    return [text for tag, text in fenced if tag == language]


SMALL_PICTURES = [
    "model.hidden_size=16",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "train.steps=2",
    "train.batch_size=4",
    "train.threads=1",
    "train.precision=fp32",
    "data.workers=1",
]


def commands(kind: str = "text") -> list[str]:
    """The lines of the README's blocks of commands: of "text", of "pictures", or of pictures with "words"."""

    def is_of(block: str) -> str:
        return "words" if "bedplate caption" in block else "pictures" if "photo" in block else "text"

    kept = [block for block in blocks("") if is_of(block) == kind]
    return [line for block in kept for line in block.splitlines() if line.startswith("bedplate ")]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user stands: the recipes, a few books of their own, and no cache yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quickstart, "TEXT", "rotten_tomatoes")  # 1 MB instead of 33
    monkeypatch.setattr(quickstart, "LABELS", (20,))
    monkeypatch.setattr(quickstart, "SEEDS", 1)
    shutil.copytree(ROOT / "recipes", "recipes")
    Path("my-books").mkdir()
    for i in range(3):
        story = "\n".join(f"On day {day} of book {i} it was {'sunny' if day % 3 else 'dark'}." for day in range(200))
        Path(f"my-books/book-{i}.txt").write_text(story, "utf-8")
    Path("other-book.txt").write_text("It was a long day, and then it was dark.\n" * 600, "utf-8")
    shutil.copy("other-book.txt", "my-text.txt")
    for name, days in (("my-labels.csv", range(120)), ("my-test.csv", range(200, 220))):
        rows = [f"On day {day} it was {'sunny,bright' if day % 2 else 'dark,gloomy'}\n" for day in days]
        Path(name).write_text("text,label\n" + "".join(rows), "utf-8")
    return tmp_path


def run(line: str, small: list[str] = SMALL) -> str:
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[0] in ("pretrain", "quickstart"):
        arguments += small
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, (line, result.output)
    return result.stdout


def test_the_commands_for_your_own_data_run_in_their_order(empty_folder: Path) -> None:
    lines = commands()
    assert len(lines) == 9, "the README's list has changed: look whether this test still runs all of it"
    for line in lines:
        out = run(line)
        if "--dry-run" in line:
            assert "Parameters" in out and not Path("runs").exists()
        if line.startswith("bedplate generate"):
            assert out.startswith("It was")
        if line.startswith("bedplate evaluate"):
            assert re.search(r"bits_per_byte: \d" if "gpt-mini" in line else r"macro_f1: \d", out)
        if line.startswith("bedplate transfer"):
            assert "The same network from scratch" in out and Path("transfer/report.html").exists()
        if line.startswith("bedplate predict"):
            assert out.startswith(("bright", "gloomy"))


def test_the_commands_for_your_own_pictures_run_in_their_order(empty_folder: Path) -> None:
    pytest.importorskip("pycocotools")
    draw = np.random.default_rng(0)
    for folder in ("photos", "labelled/cat", "labelled/dog", "coco"):
        Path(folder).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(draw.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(f"{folder}/{i}.jpg")
    shutil.copy("photos/0.jpg", "photo.jpg")
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 48} for i in range(12)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400} for i in range(12)]
    parts = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cup"}]}
    Path("coco/annotations.json").write_text(json.dumps(parts), "utf-8")
    lines = commands("pictures")
    assert len(lines) == 5, "the README's list has changed: look whether this test still runs all of it"
    for line in lines:
        small = [*SMALL_PICTURES, "model.image_size=[32, 48]"] if "detect" in line else SMALL_PICTURES
        if line.startswith("bedplate finetune"):
            line += " train.steps=2 train.batch_size=4 train.threads=1 data.workers=1"
        out = run(line, small)
        if line.startswith("bedplate predict runs/classify-images"):
            assert out.startswith(("cat", "dog"))
    assert Path("found.png").is_file()


def test_the_commands_of_pictures_with_words_run(empty_folder: Path) -> None:
    pytest.importorskip("bedplate_zoo", reason="pip install ./zoo")
    Path("photos").mkdir()
    for number, each in enumerate(ask_scenes(shapes(), 4, seed=5)):
        each["scene"]["image"].save(f"photos/{number}.png")
    shutil.copy("photos/0.png", "photo.png")
    lines = commands("words")
    assert len(lines) == 5, "the README's list has changed: look whether this test still runs all of it"
    out = {line.split()[1]: run(line) for line in lines}
    assert out["predict"].startswith(("cat", "dog", "pizza"))
    assert out["search"].count(".png") == 4 and out["caption"].strip() and out["ask"].strip()
    assert len(list(Path().glob("heart-*.png"))) == 4


def test_quickstart_then_the_python_example(
    empty_folder: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "BASE", str(tiny_run))
    out = run("bedplate quickstart")
    assert "quickstart/model" in out and Path("quickstart/report.html").exists()
    page = Path("quickstart/report.html").read_text("utf-8")
    assert (
        "Drawn from words" in page and "Captions and questions" in page and len(list(Path().glob("*/pictures/*"))) > 5
    )
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    overrides = ", ".join(repr(override) for override in SMALL)
    example = example.replace('"train.steps=200"', overrides)
    exec(compile(example, "README.md", "exec"), {})
    assert "bits per byte" in capsys.readouterr().out
    assert Path("runs/mine/model/model.safetensors").exists()


def test_the_plain_pip_lines_are_what_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8").replace("$(VENV)", ".venv").replace("$(PYTHON)", "python3")
    plain = [line for block in blocks("") for line in block.splitlines() if ".venv" in line]
    assert len(plain) == 6
    for line in plain:
        assert f"\t{line}\n" in makefile, line
