"""`search`: what is nearest, and an index that follows its folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bedplate
from bedplate.data.tokenizer import train_tokenizer
from bedplate.errors import InputError
from bedplate.hub.clip_model import ClipModel
from bedplate.hub.processor import ImageProcessor
from bedplate.models.clip import Clip, ClipConfig

CONFIG = ClipConfig.standard(
    {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    vocab_size=300,
    max_position_embeddings=16,
    image_size=16,
    patch_size=8,
    projection_dim=12,
    eos_token_id=0,
)


def made(seed: int) -> ClipModel:
    module = Clip(CONFIG)
    module.init_weights(seed)
    return ClipModel(module.eval(), ImageProcessor((16, 16)), train_tokenizer(["a sad face"], 300))


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return made(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures, two of them in a folder below, a hidden one, a text, and one that is broken."""
    root = tmp_path / "photos"
    (root / "inner").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for number in range(6):
        picture(number).save(root / ("inner" if number > 3 else ".") / f"{number}.png")
    picture(9).save(root / ".hidden" / "9.png")
    (root / "note.txt").write_text("no picture")
    (root / "broken.jpg").write_bytes(b"no picture")
    return root


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8))


class Counting:
    """Counts the pictures that a model embeds."""

    def __init__(self, model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, embed = 0, ClipModel.embed_pixels

        def counted(model: ClipModel, pixels: torch.Tensor) -> torch.Tensor:
            self.count += len(pixels)
            return embed(model, pixels)

        monkeypatch.setattr(ClipModel, "embed_pixels", counted)

    def since(self) -> int:
        count, self.count = self.count, 0
        return count


def test_it_finds_what_is_nearest(folder: Path, model: ClipModel) -> None:
    lines: list[str] = []
    found = bedplate.search(folder, "a sad face", model=model, n=4, progress=lines.append)
    names = [*(f"{n}.png" for n in range(4)), "inner/4.png", "inner/5.png"]
    cosines = model.embed([folder / name for name in names]) @ model.embed(["a sad face"])[0]
    best = cosines.argsort(descending=True)[:4]
    assert [row["path"] for row in found] == [str(folder / names[i]) for i in best]
    assert [row["score"] for row in found] == pytest.approx(cosines[best].tolist(), abs=1e-5)
    assert any("7 pictures, 7 of them new, 1 broken" in line for line in lines)
    assert any("broken.jpg: no picture" in line for line in lines)


def test_a_picture_finds_itself(folder: Path, model: ClipModel) -> None:
    for query in (folder / "2.png", str(folder / "2.png"), picture(2)):
        (first,) = bedplate.search(folder, query, model=model, n=1)
        assert first["path"] == str(folder / "2.png") and first["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("index", [None, "own.safetensors"])
def test_the_index_follows_its_folder(
    folder: Path, model: ClipModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: str | None
) -> None:
    embedded, options = Counting(model, monkeypatch), {"model": model, "index": index and tmp_path / index}
    bedplate.search(folder, "face", **options)
    assert embedded.since() == 6
    bedplate.search(folder, "sad", **options)
    assert embedded.since() == 0
    (folder / "0.png").unlink()
    picture(7).save(folder / "7.png")
    picture(8).resize((40, 40)).save(folder / "1.png")  # another picture of the same name
    picture(3).save(folder / "broken.jpg")
    found = bedplate.search(folder, "sad", n=99, **options)
    assert embedded.since() == 3
    paths = {Path(row["path"]).name for row in found}
    assert paths == {"1.png", "2.png", "3.png", "4.png", "5.png", "7.png", "broken.jpg"}
    for row in found:
        cosine = model.embed([Path(row["path"])])[0] @ model.embed(["sad"])[0]
        assert row["score"] == pytest.approx(cosine.item(), abs=1e-5)


def test_an_index_of_another_model_is_made_anew(
    folder: Path, model: ClipModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    embedded, index = Counting(model, monkeypatch), tmp_path / "own.safetensors"
    bedplate.search(folder, "face", model=model, index=index)
    assert embedded.since() == 6
    bedplate.search(folder, "face", model=made(1), index=index)
    assert embedded.since() == 6
    bedplate.search(folder, "face", model=made(1), index=index)
    assert embedded.since() == 0


def test_what_was_embedded_before_an_interruption_is_kept(
    folder: Path, model: ClipModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bedplate.hub.picture_index.BATCH", 2)
    embed, calls = ClipModel.embed_pixels, []

    def interrupted(model: ClipModel, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(model, pixels)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ClipModel, "embed_pixels", interrupted)
        bedplate.search(folder, "face", model=model)
    embedded = Counting(model, monkeypatch)
    assert len(bedplate.search(folder, "face", model=model)) == 6
    assert embedded.since() == 6 - sum(calls[:2])


def test_a_table_of_pictures(folder: Path, model: ClipModel, tmp_path: Path) -> None:
    table = tmp_path / "photos" / "list.csv"
    table.write_text("image\n1.png\ninner/5.png\n")
    found = bedplate.search(table, picture(5), model=model)
    assert len(found) == 2 and found[0]["score"] == pytest.approx(1, abs=1e-5) and "list.csv" in found[0]["path"]


@pytest.mark.parametrize(
    ("query", "options", "told"),
    [
        (" ", {}, "query: the text is empty"),
        ("missing.png", {}, "missing.png: no such picture"),
        ("face", {"n": 0}, "n=0"),
        ("face " * 20, {}, r"^query: \d+ tokens with its end, and this model reads 16; shorten the query$"),
    ],
)
def test_queries_that_are_none(folder: Path, model: ClipModel, query: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        bedplate.search(folder, query, model=model, **options)


def test_folders_and_files_that_are_none(folder: Path, model: ClipModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        bedplate.search(tmp_path / "nowhere", "face", model=model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        bedplate.search(tmp_path / "empty", "face", model=model)
    (tmp_path / "empty" / "a.png").write_text("no picture")
    with pytest.raises(InputError, match="none of its 1 pictures can be decoded"):
        bedplate.search(tmp_path / "empty", "face", model=model)
    before = (folder / "1.png").read_bytes()
    with pytest.raises(InputError, match=r"1\.png: no index, or a damaged one"):
        bedplate.search(folder, "face", model=model, index=folder / "1.png")
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="is no index of search and is not overwritten"):
        bedplate.search(folder, "face", model=model, index=tmp_path / "model" / "model.safetensors")
    assert (folder / "1.png").read_bytes() == before


def test_a_model_that_reads_no_texts_cannot_search(folder: Path, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="one space"):
        bedplate.search(folder, "face", model=tiny_model)


def test_on_the_command_line(folder: Path, model: ClipModel, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from bedplate.cli import main as cli

    model.save(tmp_path / "model")

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["bedplate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    code, out, err = run("search", folder, "sad", "--model", tmp_path / "model", "--n", 2, "--json")
    assert code == 0 and [set(row) for row in json.loads(out)] == [{"path", "score"}] * 2 and "1 broken" in err
    code, out, _ = run("search", folder, folder / "2.png", "--model", tmp_path / "model", "--n", 1)
    assert (code, out) == (0, f"1.000\t{folder / '2.png'}\n")
    assert run("search", folder, "", "--model", tmp_path / "model")[0] == 2

    code, out, _ = run("predict", tmp_path / "model", folder / "2.png", "--labels", "face,sad", "--json")
    (prediction,) = json.loads(out)
    assert code == 0 and set(prediction["scores"]) == {"face", "sad"} and prediction["label"] in ("face", "sad")
    code, out, _ = run("predict", tmp_path / "model", folder / "inner", "--labels", "face,sad")
    assert code == 0 and [line.split()[-1] for line in out.splitlines()] == [
        str(folder / "inner" / f"{n}.png") for n in (4, 5)
    ]
    for extra, told in (
        (("--method", "prompt"), "method is no option"),
        (("--calibrate",), "calibrate is no option"),
        (("--examples", "x.csv"), "examples is no option"),
        (("--template", "photo"), "must hold {label} once"),
        ((), ""),
    ):
        code, _, err = run("predict", tmp_path / "model", folder / "2.png", "--labels", "face,sad", *extra)
        assert (code, told in err) == (2 if extra else 0, True), err
    code, _, err = run("predict", tmp_path / "model", folder / "2.png")
    assert code == 2 and "labels: none are given" in err
