"""`bedplate draw` in the shell: files, JSON and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bedplate.api.predict import predict
from bedplate.cli.main import app
from bedplate.data.tokenizer import end_of_text_id, train_tokenizer, vocabulary_size
from bedplate.hub.draw_model import DrawModel, draw_trunk
from bedplate.hub.image_tokens_model import ImageTokensModel
from bedplate.hub.processor import ImageProcessor
from bedplate.models.dalle import Dalle, DalleConfig, Painter
from bedplate.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokens = ImageTokenizer(ImageTokenizerConfig((8, 8), patch=4, levels=(5, 4), width=16))
    tokens.init_weights(0)
    tokenizer = train_tokenizer(["a red heart"], 270)
    size, end = vocabulary_size(tokenizer), end_of_text_id(tokenizer)
    dalle = Dalle(DalleConfig(size, 12, end, (2, 2), 20, draw_trunk(8, 1, 1)))
    dalle.init_weights(0)
    torch.nn.init.normal_(dalle.head.weight, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("models") / "draw"
    DrawModel(Painter(dalle, tokens).eval(), ImageProcessor((8, 8)), tokenizer).save(path)
    return str(path)


def test_files_are_printed_and_written(model: str, tmp_path: Path) -> None:
    args = ["draw", "a red heart", "--model", model, "--out", str(tmp_path / "h.png"), "--n", "2", "--seed", "7"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "h-1.png"), str(tmp_path / "h-2.png")]
    again = CliRunner().invoke(app, args)
    assert again.exit_code == 2 and "exists" in again.stderr
    asjson = CliRunner().invoke(app, [*args, "--overwrite", "--json", "--top-k", "3", "--guidance", "2"])
    rows = json.loads(asjson.stdout)
    assert rows[1] == {"prompt": "a red heart", "seed": 8, "file": str(tmp_path / "h-2.png")}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--n", "0"], "n=0"),
        (["--guidance", "-1"], "guidance=-1"),
        (["--prefix", "nowhere.png"], "no such file"),
        (["--keep", "0.5"], "give a prefix"),
        (["--model", "nowhere"], "no such folder"),
    ],
)
def test_bad_input_is_one_sentence(model: str, tmp_path: Path, more: list[str], said: str) -> None:
    args = ["draw", "heart", "--model", model, "--out", str(tmp_path / "h.png"), *more]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.startswith("Error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_predict_keeps_no_pictures_and_says_what_does(model: str, more: list[str]) -> None:
    done = CliRunner().invoke(app, ["predict", model, "a red heart", *more])
    assert done.exit_code == 2 and "bedplate draw TEXT --model" in done.stderr and not done.stdout


def test_an_image_tokenizer_is_shown_and_encodes(tmp_path: Path) -> None:
    tokens = ImageTokenizer(ImageTokenizerConfig((8, 8), patch=4, levels=(5, 4), width=16))
    tokens.init_weights(0)
    ImageTokensModel(tokens.eval(), ImageProcessor((8, 8))).save(tmp_path / "tokens")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "tokens")])
    assert shown.exit_code == 0 and "patch_size" in shown.stdout
    encoded = CliRunner().invoke(app, ["predict", str(tmp_path / "tokens"), str(tmp_path / "red.png")])
    assert encoded.exit_code == 0 and encoded.stdout.startswith(f"{tmp_path / 'red.png'}\t[[")


def test_the_seed_reaches_what_draws(model: str) -> None:
    first, second, again = (predict(model, "a red heart", seed=seed)[0]["image"] for seed in (1, 2, 1))
    assert first.tobytes() == again.tobytes() != second.tobytes()
