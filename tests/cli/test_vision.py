"""The command line on pictures: from a folder to a model that is used, and every wrong picture in one sentence."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import bedplate
from bedplate.report import fonts

RECIPES = Path(__file__).parents[2] / "recipes"
COLOURS = {"blue": (40, 60, 200), "red": (200, 50, 40)}
RECIPE: dict[str, Any] = {
    "model": {"patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16},
    "data": {"val_fraction": 0.2, "workers": 1},
    "train": {"precision": "fp32", "threads": 1, "batch_size": 8, "epochs": None, "steps": 16},
    "evaluate": {"every": 8},
    "log": {"every": 8},
}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """What the machine can multiply is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bedplate.train.loop.matmul_ceiling", lambda hardware: 1e10)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pictures of two classes, in train and test."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 6)):
        for name, colour in COLOURS.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = (draw.normal(0, 40, (20, 24, 3)) + colour).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def recipe(path: Path, task: str, pictures: Path, **more: Any) -> Path:
    """A recipe file whose run goes beside it."""
    values = {"task": task, "out": str(path.parent / "run"), **RECIPE, **more}
    values["data"] = {**RECIPE["data"], "path": str(pictures)}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The run of a masked autoencoder, which knows no labels; not to be changed."""
    root = tmp_path_factory.mktemp("mae")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bedplate.pretrain(recipe(root / "r.yaml", "mae", pictures / "train", decoder=small))
    return root / "run"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The run of a classifier of blue and red; not to be changed."""
    root = tmp_path_factory.mktemp("classifier")
    bedplate.pretrain(recipe(root / "r.yaml", "classify_images", pictures / "train"))
    return root / "run"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of a fresh detector of two classes, one of a name in Japanese."""
    from bedplate.hub.image_model import ImageModel
    from bedplate.hub.processor import ImageProcessor
    from bedplate.models.detector import Detector, DetectorConfig
    from bedplate.models.vit import VisionConfig
    from bedplate.nn.config import TrunkConfig
    from bedplate.nn.presets import PRESETS

    config = VisionConfig((32, 32), 8, TrunkConfig(16, 1, 2, 2, 8, 32, **PRESETS["vit"]))
    module = Detector(DetectorConfig(config, head_size=16, head_layers=1), ["cell", "赤血球"])
    module.init_weights(0)
    folder = tmp_path_factory.mktemp("detector") / "model"
    ImageModel(module.eval(), ImageProcessor((32, 32), fit="letterbox")).save(folder)
    return folder


@pytest.fixture
def photo(pictures: Path) -> Path:
    return pictures / "test" / "red" / "0.png"


def one_value(result: Any) -> Any:
    assert result.code == 0, result.err
    return json.loads(result.out)


def assert_refused(result: Any, *parts: object) -> None:
    """The last line of stderr is the only error, and holds these parts."""
    assert result.code == 2 and result.out == "", result.err
    lines = result.err.splitlines()
    assert lines[-1].startswith("Error: ") and result.err.count("Error: ") == 1 and "Traceback" not in result.err
    for part in parts:
        assert str(part) in lines[-1], lines[-1]


def test_from_pictures_to_a_model_that_is_used(
    run_cli: Any, pictures: Path, encoder: Path, photo: Path, tmp_path: Path
) -> None:
    file = recipe(tmp_path / "r.yaml", "classify_images", pictures / "train", base=str(encoder), model={})
    result = run_cli("finetune", file, "train.steps=24", f"data.test_path={pictures / 'test'}")
    assert result.code == 0 and "accuracy: " in result.out and f"Model: {tmp_path}/run/model\n" in result.out
    assert "Pictures of 2 classes (blue, red)" in result.err and "Pictures" not in result.out
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Where it looks" in page and page.count("where it looks") >= 4
    (row,) = one_value(run_cli("predict", tmp_path / "run", photo, "--json"))
    assert row["label"] == "red" and row["scores"]["red"] == row["score"] > row["scores"]["blue"]
    value = one_value(run_cli("evaluate", tmp_path / "run", "--data", pictures / "test", "--json"))
    assert value["n"] == 12 and value["metrics"]["accuracy"]["value"] > 0.8
    shown = run_cli("evaluate", tmp_path / "run", "--data", pictures / "test").out
    assert "accuracy: " in shown and "12 pictures\n" in shown and "red: predicted as" in shown


def test_pretraining_prints_one_json_value(run_cli: Any, pictures: Path, tmp_path: Path) -> None:
    file = recipe(tmp_path / "r.yaml", "classify_images", pictures / "train")
    value = one_value(run_cli("pretrain", file, "train.steps=2", "--json"))
    assert value["steps"] == 2 and value["data"]["classes"] == ["blue", "red"]


def test_predictions_of_a_folder_say_which_picture_they_are_of(run_cli: Any, classifier: Path, pictures: Path) -> None:
    folder = pictures / "test"
    lines = run_cli("predict", classifier, folder).out.splitlines()
    names = sorted(map(str, folder.rglob("*.png")))
    assert [line.split("  ")[1] for line in lines] == names and len(names) == 12
    assert len(one_value(run_cli("predict", classifier, folder, "--json"))) == 12
    both = run_cli("predict", classifier, folder / "red", folder / "blue" / "0.png").out.splitlines()
    assert len(both) == 7 and both[-1].endswith("blue/0.png")
    assert len(run_cli("predict", classifier, "--file", folder).out.splitlines()) == 12


def test_drawing_a_label(run_cli: Any, classifier: Path, photo: Path, pictures: Path, tmp_path: Path) -> None:
    assert run_cli("predict", classifier, photo, "--draw", tmp_path / "new" / "out.png").code == 0
    assert Image.open(tmp_path / "new" / "out.png").size == (480, 400), "enlarged until a label can be read"
    assert run_cli("predict", classifier, pictures / "test", "--draw", tmp_path / "all").code == 0
    drawn = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert len(drawn) == 12, "two folders have pictures of the same names"
    assert run_cli("predict", classifier, photo, "--draw", tmp_path / "all").code == 0, "a folder will do for one, too"
    assert len(list((tmp_path / "all").iterdir())) == 13


def test_drawing_where_it_looks(run_cli: Any, classifier: Path, encoder: Path, photo: Path, tmp_path: Path) -> None:
    (row,) = one_value(run_cli("predict", classifier, photo, "--draw", tmp_path / "a.png", "--attention", "--json"))
    assert row["label"] == "red"
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (400, 968, 3), "two pictures and a gap"
    assert not (pixels[:, 488:] == pixels[:, :480]).all()
    result = run_cli("predict", encoder, photo, "--draw", tmp_path / "b.png", "--attention")
    assert result.code == 0 and result.out == f"{tmp_path}/b.png\n"
    original = np.asarray(Image.open(photo)).repeat(20, 0).repeat(20, 1)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png"))[:, :480], original)


def test_boxes(run_cli: Any, detector: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedplate.report.fonts.FONTS", ())
    fonts._fonts.cache_clear()
    out = tmp_path / "found.png"
    for wrong in ("7", "-1", "nan"):
        assert_refused(run_cli("predict", detector, photo, "--threshold", wrong), "threshold=", "one in 0..1")
    (boxes,) = one_value(run_cli("predict", detector, photo, "--json", "--threshold", 0))
    assert boxes and all(row["label"] in ("cell", "赤血球") and len(row["box"]) == 4 for row in boxes)
    result = run_cli("predict", detector, photo, "--threshold", 0, "--draw", out)
    assert result.out.splitlines()[0] == f"{photo}: {len(boxes)} found" and out.exists()
    assert result.out.count("\n") == 1 + len(boxes)
    assert "赤血球: it is drawn as #2" in result.err
    fonts._fonts.cache_clear()


def test_features_and_facts(run_cli: Any, encoder: Path, classifier: Path, pictures: Path) -> None:
    probe = ("evaluate", encoder, "--data", pictures / "test", "--probe", pictures / "train")
    value = one_value(run_cli(*probe, "--json"))
    assert value["metrics"].keys() == {"knn_accuracy", "linear_accuracy"} and value["n"] == 12
    assert "linear_accuracy: " in run_cli(*probe).out
    facts = one_value(run_cli("info", classifier, "--json"))
    assert (facts["family"], facts["labels"], facts["image_size"]) == ("vit", ["blue", "red"], [16, 16])
    shown = run_cli("info", encoder).out
    assert "image_size   [16, 16]" in shown and "hidden_size" in shown and "labels       None" not in shown


def truncated(path: Path, photo: Path) -> Path:
    Image.open(photo).resize((300, 300)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])
    return path


def huge(path: Path) -> Path:
    """A PNG whose header says 20,000 x 20,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    data = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_wrong_pictures(run_cli: Any, request: Any, kind: str, photo: Path, tmp_path: Path) -> None:
    model = request.getfixturevalue(kind)
    (tmp_path / "note.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    bad: list[tuple[Path, list[str]]] = [
        (tmp_path / "missing.jpg", ["no such file"]),
        (tmp_path / "note.txt", ["no picture of a known kind"]),
        (truncated(tmp_path / "cut.jpg", photo), ["truncated"]),
        (huge(tmp_path / "huge.png"), ["more than the 89,478,485 pixels"]),
        (tmp_path / "empty", ["a folder without pictures"]),
    ]
    for path, parts in bad:
        assert_refused(run_cli("predict", model, photo, path), path, *parts)
        assert_refused(run_cli("predict", model, path, "--draw", tmp_path / "out.png"), path, *parts)
    assert not (tmp_path / "out.png").exists()
    assert_refused(run_cli("predict", model), "nothing to predict")
    assert_refused(run_cli("predict", model, photo, "--file", tmp_path), "either pictures or a file")
    assert_refused(run_cli("predict", model, "--file", tmp_path / "missing.csv"), "missing.csv", "no such file")


def test_broken_pictures_of_a_folder_are_left_out_and_said(
    run_cli: Any, classifier: Path, encoder: Path, detector: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures / "test" / "red", folder)
    cut = folder / "2.png"
    cut.write_bytes(cut.read_bytes()[:300])
    names = [str(folder / f"{i}.png") for i in (0, 1, 3, 4, 5)]
    for model in (classifier, detector):
        for ways in ([folder], ["--file", folder], [folder, "--draw", tmp_path / f"drawn-{model.name}"]):
            result = run_cli("predict", model, *ways)
            assert result.code == 0 and result.err.count("Left out: ") == 1, result.err
            assert f"Left out: {cut}: truncated" in result.err and "1 of 6 pictures cannot be decoded" in result.err
            overwrite = ["--overwrite"] if "--draw" in ways else []
            rows = one_value(run_cli("predict", model, *ways, *overwrite, "--json"))
            assert [row is None for row in rows] == [False, False, True, False, False, False]
        assert len(list((tmp_path / f"drawn-{model.name}").iterdir())) == 5
        assert_refused(run_cli("predict", model, *names, cut), cut, "truncated")
        assert_refused(run_cli("predict", model, folder, tmp_path / "gone.png"), "gone.png", "no such file")
        assert_refused(run_cli("predict", model, "--file", cut), cut, "truncated")
    lines = run_cli("predict", classifier, folder).out.splitlines()
    assert [line.split("  ")[1] for line in lines] == names
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(names[0], alone)
    assert str(alone / "0.png") in run_cli("predict", classifier, alone).out
    result = run_cli("predict", encoder, folder, "--draw", tmp_path / "looks", "--attention")
    assert result.code == 0 and len(list((tmp_path / "looks").iterdir())) == 5 == result.out.count("looks")
    for name in names:
        Path(name).unlink()
    shutil.copy(cut, folder / "3.png")
    assert_refused(run_cli("predict", classifier, folder), "none of the 2 pictures can be decoded; the first", cut)


def test_measuring_says_how_many_pictures_are_broken(
    run_cli: Any, classifier: Path, encoder: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures / "test", tmp_path / "test")
    cut = tmp_path / "test" / "red" / "2.png"
    cut.write_bytes(cut.read_bytes()[:300])
    shown = run_cli("evaluate", classifier, "--data", tmp_path / "test").out
    assert f"11 pictures\nleft out, cannot be decoded: 1 of the pictures, the first: {cut}: truncated" in shown
    shutil.copytree(pictures / "train", tmp_path / "train")
    cut = tmp_path / "train" / "red" / "2.png"
    cut.write_bytes(cut.read_bytes()[:300])
    shown = run_cli("evaluate", encoder, "--data", pictures / "test", "--probe", tmp_path / "train").out
    assert f"12 pictures\nleft out, cannot be decoded: 1 of the pictures of --probe, the first: {cut}" in shown
    both = ["--probe", tmp_path / "train", "--probe", pictures / "test"]
    shown = run_cli("evaluate", encoder, "--data", pictures / "test", *both).out
    assert "left out: 12 pictures of --probe that are scored, too" in shown


def test_wrong_ways_to_draw(
    run_cli: Any, classifier: Path, encoder: Path, detector: Path, photo: Path, pictures: Path, tmp_path: Path
) -> None:
    def refused(model: Path, *arguments: object, parts: list[object]) -> None:
        assert_refused(run_cli("predict", model, *arguments), *parts)

    folder, before = pictures / "test" / "red", photo.read_bytes()
    refused(classifier, folder, "--draw", tmp_path / "out.png", parts=["out.png", "6 pictures need a folder"])
    refused(classifier, photo, "--draw", tmp_path / "out.doc", parts=["out.doc", "such as found.png"])
    refused(classifier, photo, "--draw", photo, parts=[photo, "would be lost"])
    refused(classifier, folder, "--draw", folder, parts=[folder, "would be lost"])
    refused(encoder, photo, "--draw", tmp_path / "out.png", parts=["predicts nothing", "attention"])
    refused(classifier, photo, "--attention", parts=["attention", "give draw as well"])
    refused(detector, photo, "--draw", tmp_path / "out.png", "--attention", parts=["attention", "boxes"])
    theirs = shutil.copy(pictures / "test" / "blue" / "1.png", tmp_path / "0.png")  # another picture of that name
    refused(detector, photo, "--draw", theirs, parts=[theirs, "exists", "--overwrite"])
    refused(detector, photo, "--draw", tmp_path, parts=[theirs, "exists"])
    assert theirs.read_bytes() == (pictures / "test" / "blue" / "1.png").read_bytes()
    assert run_cli("predict", detector, photo, "--draw", theirs, "--overwrite").code == 0
    assert theirs.read_bytes() != (pictures / "test" / "blue" / "1.png").read_bytes()
    theirs.unlink()
    (tmp_path / "file").write_text("in the way")
    for target in (tmp_path / "file" / "out.png", tmp_path / "file", Path("/proc/out.png")):
        refused(classifier, photo, "--draw", target, parts=[target, "cannot be written"])
    assert photo.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_options_of_other_models(
    run_cli: Any, classifier: Path, encoder: Path, tiny_model: Path, photo: Path, pictures: Path, tmp_path: Path
) -> None:
    assert_refused(run_cli("predict", classifier, photo, "--threshold", 0.5), "threshold is no option of a classifier")
    assert_refused(run_cli("predict", classifier, photo, "--beams", 2), "num_beams is no option of a classifier")
    assert_refused(run_cli("predict", classifier, photo, "--labels", "a,b"), "labels is for models of text")
    assert_refused(run_cli("predict", classifier, photo, "--adapter", photo.parent), "adapters are for language models")
    assert_refused(run_cli("predict", encoder, photo), "predicts nothing", "fine-tune it")
    draw = ("--draw", tmp_path / "a.png", "--attention", "--threshold", 0.5)
    assert_refused(run_cli("predict", encoder, photo, *draw), "threshold is no option")
    assert_refused(run_cli("predict", tiny_model, photo, "--attention"), "attention is for models of images")
    assert_refused(run_cli("predict", tiny_model, photo, "--threshold", 0.5), "threshold is for models of images")
    test = ("--data", pictures / "test")
    assert_refused(run_cli("evaluate", encoder, *test), "predicts nothing", "probe")
    assert_refused(run_cli("evaluate", classifier, "--suite", tmp_path), "suite is for models of text")
    assert_refused(run_cli("evaluate", classifier, *test, "--summary", "x"), "summary is for models of text")
    assert_refused(run_cli("evaluate", tiny_model, *test, "--probe", pictures), "is for models of images")


def test_a_models_kind_is_said_where_the_other_is_needed(
    run_cli: Any,
    classifier: Path,
    detector: Path,
    tiny_model: Path,
    labelled: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for model in (classifier, detector):
        assert_refused(run_cli("generate", model, "A dog"), model, "reads pictures and writes no text")
        assert_refused(run_cli("generate", model, "--chat", "A dog"), model, "reads pictures and writes no text")
        text = ("out=" + str(tmp_path / "run"), f"data.path={labelled}", f"base={model}")
        assert_refused(run_cli("finetune", RECIPES / "classify.yaml", *text), model, "is a model of images")
        assert not (tmp_path / "run").exists()
    monkeypatch.chdir(photo.parent)
    rows = one_value(run_cli("predict", tiny_model, photo.name, "--max-new-tokens", 2, "--json"))
    assert rows[0].keys() == {"text"}, "to a model of text a path is a text"
    assert_refused(run_cli("predict", tiny_model, labelled), labelled, "is a file; give it as file (--file")
    assert_refused(run_cli("predict", tiny_model, "a text", "--column", "x"), "column='x' is of a file")


def test_wrong_data_to_measure_on(run_cli: Any, classifier: Path, pictures: Path, tmp_path: Path) -> None:
    def refused(path: Path, *parts: object) -> None:
        assert_refused(run_cli("evaluate", classifier, "--data", path), *parts)

    refused(tmp_path / "missing", "missing", "no such")
    refused(pictures, "a part for training beside others (12 files)", pictures / "test")  # and would score the former
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "empty")
    for name in ("red", "teal"):
        (tmp_path / "odd" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "odd" / name / "1.png")
    refused(tmp_path / "odd", "label 'teal' is not among")
    refused(pictures / "test" / "red", "no labels")
    probe = ("--data", pictures / "test", "--probe", pictures / "test" / "red")
    assert_refused(run_cli("evaluate", classifier, *probe), "no labels")


def coco(root: Path, **changes: Any) -> Path:
    """A COCO folder of one picture with one box."""
    root.mkdir()
    Image.new("RGB", (40, 30), "grey").save(root / "a.png")
    values = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}],
        "categories": [{"id": 5, "name": "cell"}],
    }
    (root / "annotations.json").write_text(json.dumps(values | changes))
    return root


def test_wrong_boxes_to_measure_on(run_cli: Any, detector: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    value = one_value(run_cli("evaluate", detector, "--data", coco(tmp_path / "good"), "--json"))
    assert value["n"] == 1 and {"value", "low", "high"} <= value["metrics"]["map_50"].keys()
    shown = run_cli("evaluate", detector, "--data", tmp_path / "good").out
    assert "map_50: " in shown and "1 pictures" in shown
    gone = coco(tmp_path / "gone", images=[{"id": 1, "file_name": "b.png", "height": 30, "width": 40}])
    assert_refused(run_cli("evaluate", detector, "--data", gone), "b.png")
    other = coco(tmp_path / "other", categories=[{"id": 5, "name": "tree"}])
    assert_refused(run_cli("evaluate", detector, "--data", other), "tree")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "annotations.json").write_text('{"images": [')
    assert_refused(run_cli("evaluate", detector, "--data", tmp_path / "bad"), "annotations.json", "no JSON")
