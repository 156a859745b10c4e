import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data.pairs import JOINED, Pairs, drawn_text, read_pairs, split_pairs
from bedplate.errors import InputError

from .pictures import encoded, noise, save
from .test_image_files import SHARED, STRUCT, shown
from .writers import write_tar


def png(seed: int) -> bytes:
    return encoded(noise(8, 8, seed))


def seeds(pairs: Pairs) -> list[int]:
    return [seed for seed, _ in shown(pairs)]  # type: ignore[arg-type]  # no labels are looked at


@pytest.fixture(autouse=True)
def _unlabelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pairs, "labels", None, raising=False)


@pytest.mark.parametrize("compression", ["", "gz"])
def test_webdataset(tmp_path: Path, compression: str) -> None:
    members = {
        "a/1.png": png(1),
        "a/1.json": json.dumps({"name": " Red Heart ", "keywords": ["love", "Red Heart", " "], "base": 7}).encode(),
        "a/2.png": png(2),
        "a/2.txt": b"a blue heart\n\na heart of ice\n",
        "a/3.png": png(3),
        "a/4.png": png(4),
        "a/4.json": json.dumps({"name": None, "keywords": []}).encode(),
    }
    path = write_tar(tmp_path / f"x.tar{'.' + compression if compression else ''}", members, compression)
    pairs = read_pairs(path)
    assert seeds(pairs) == [1, 2]
    assert pairs.texts == [("Red Heart",), ("a blue heart", "a heart of ice")]
    assert pairs.groups == ["red heart", "a blue heart"] and pairs.whole == []
    assert pairs.dropped == {"pictures without a text": 2}
    assert [where.partition("::")[2] for where in pairs.textless] == ["a/3.png", "a/4.png"]
    pairs = read_pairs([path], text="name, keywords", group="base")
    assert pairs.texts == [("Red Heart", "love")] and pairs.groups == ["7"] and pairs.whole == [1]
    assert read_pairs(path, text=["keywords", "name"]).texts == [("love", "Red Heart")]
    with pytest.raises(InputError, match=r"none of 4 pictures has a text in 'colour'; name the column"):
        read_pairs(path, text="colour")
    with pytest.raises(InputError, match=r"x\.tar.*::a/2\.json: no label can be read"):
        read_pairs(write_tar(path, members | {"a/2.json": b"{"}, compression))
    with pytest.raises(InputError, match=r"a/1\.json: 'base' holds int, not a string; name the column of the text"):
        read_pairs(write_tar(path, members, compression), text="base")


@pytest.mark.parametrize(
    ("beside", "text"),
    [({"label": 3}, "a cat"), ({"name": "x", "title": "y"}, "a cat"), ({"caption": "one"}, "one"), ({}, "a cat")],
)
def test_the_text_file_of_an_archive_goes_before_names_and_labels(
    tmp_path: Path, beside: dict[str, Any], text: str
) -> None:
    members = {"1.png": png(1), "1.json": json.dumps(beside).encode(), "1.txt": b"a cat"}
    assert read_pairs(write_tar(tmp_path / "x.tar", members)).texts == [(text,)]


def test_tables(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "images" / f"{seed}.png", seed)
    rows: list[dict[str, Any]] = [
        {"file": "images/0.png", "title": "first", "kind": "A"},
        {"file": "images/2.png", "title": "", "kind": "A"},
        {"file": "images/1.png", "title": "Second", "kind": "B"},
    ]
    for name, dialect in (("t.csv", csv.excel), ("t.tsv", csv.excel_tab)):
        with (tmp_path / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
    lists = [row | {"title": [row["title"], "more"]} for row in rows]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    table = {
        "file": pa.array([{"bytes": png(0), "path": None}, {"bytes": png(2), "path": None}, {"bytes": png(1)}], STRUCT),
        "title": [["first", "more"], None, ["Second", "more"]],
        "kind": ["A", "A", None],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=2)
    for name in ("t.csv", "t.tsv"):
        pairs = read_pairs(tmp_path / name, group="kind")
        assert pairs.texts == [("first",), ("Second",)] and pairs.groups == ["A", "B"], name
        assert pairs.dropped == {"pictures without a text": 1} and pairs.textless[0].startswith(f"{tmp_path / name}:3")
    assert read_pairs(tmp_path / "t.jsonl").texts == [("first", "more"), ("more",), ("Second", "more")]
    pairs = read_pairs(tmp_path / "t.parquet", group="kind")
    assert pairs.texts == [("first", "more"), ("Second", "more")] and pairs.groups == ["A", "second"]
    for name in ("t.csv", "t.tsv", "t.parquet"):
        assert seeds(read_pairs(tmp_path / name)) == [0, 1], name
    with pytest.raises(InputError, match="no column 'caption'; present are 'file', 'title', 'kind'"):
        read_pairs(tmp_path / "t.csv", text="caption")
    (tmp_path / "u.csv").write_text("file,x\nimages/0.png,a\n")
    with pytest.raises(InputError, match=r"u\.csv: it is not clear which column holds the texts: present are"):
        read_pairs(tmp_path / "u.csv")


def test_rows_of_one_picture_are_joined(tmp_path: Path) -> None:
    """Flickr8k's form: a row a caption. Else a picture's other captions would be negatives, and be held out from it."""
    for seed in range(2):
        save(tmp_path / f"{seed}.png", seed)
    rows = [("0.png", "a cat", "pet"), ("1.png", "a dog", ""), ("./0.png", "one cat", "pet"), ("0.png", "a cat", "fur")]
    with (tmp_path / "t.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption", "words"), *rows])
    content = [png(0), png(1), png(0), png(0)]
    table = {
        "image": pa.array([{"bytes": each} for each in content], STRUCT),
        "caption": [row[1] for row in rows],
        "words": [row[2] for row in rows],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    for path in (tmp_path / "t.csv", tmp_path / "t.parquet", [tmp_path / "t.csv"] * 2):
        pairs = read_pairs(path, text="caption,words")
        assert seeds(pairs) == [0, 1]
        assert pairs.texts == [("a cat", "one cat", "pet", "fur"), ("a dog",)] and pairs.whole == [2, 1]
        assert pairs.groups == ["a cat", "a dog"]
    assert read_pairs(tmp_path / "t.csv", group="words").groups == ["pet", "a dog"]


def test_a_folder_of_pictures_with_texts_beside_them(tmp_path: Path) -> None:
    for part, seed, text in (("train", 1, "one\n uno \n"), ("train", 2, None), ("test", 3, "three")):
        picture = save(tmp_path / "d" / part / f"{seed}.png", seed)
        if text is not None:
            picture.with_suffix(".txt").write_text(text)
    pairs = read_pairs(tmp_path / "d")
    assert seeds(pairs) == [1] and pairs.texts == [("one", "uno")]
    assert pairs.dropped == {"pictures without a text": 1, "files of other splits": 1}
    assert pairs.textless == [str(tmp_path / "d" / "train" / "2.png")]
    assert read_pairs(str(tmp_path / "d" / "te*" / "*")).texts == [("three",)]
    (tmp_path / "d" / "metadata.jsonl").write_text('{"file_name": "train/2.png", "text": "two"}\n')
    named = read_pairs(tmp_path / "d")
    assert named.texts == [("two",)] and named.dropped == {"pictures that no metadata file names": 1}  # 1.png
    (tmp_path / "d" / "train" / "1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"1\.txt: not UTF-8 at byte 3; re-encode"):
        read_pairs(tmp_path / "d" / "train")


def test_coco_captions(tmp_path: Path) -> None:
    save(tmp_path / "val2017" / "5.png", 5)
    save(tmp_path / "val2017" / "6.png", 6)
    images = [{"id": 5, "file_name": "5.png"}, {"id": 6, "file_name": "6.png"}]
    annotations = [{"image_id": 6, "caption": "six"}, {"image_id": 5, "caption": "five "}]
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"images": images, "annotations": [*annotations, {"image_id": 6, "caption": "6"}]}))
    pairs = read_pairs(file)
    assert seeds(pairs) == [5, 6] and pairs.texts == [("five",), ("six", "6")]
    for wrong, message in (
        ({"images": images}, "COCO's captions are an object with lists images and annotations"),
        ({"images": images, "annotations": [{"image_id": 7, "caption": "x"}]}, "is of image 7, which 'images' does"),
        ({"images": images, "annotations": [{"image_id": 5, "bbox": []}]}, "needs image_id and caption"),
        ({"images": images * 2, "annotations": []}, "the id 5 is that of two images"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=message):
            read_pairs(file)


@pytest.mark.parametrize(
    ("images", "annotations", "told"),
    [
        ([{"id": [1], "file_name": "a.png"}], [], r"image entry number 0: id \[1\] is neither"),
        ([], [{"image_id": {}, "caption": "x"}], r"annotation number 0: image_id {} is neither"),
    ],
)
def test_ids_of_coco_captions_are_numbers_or_texts(
    tmp_path: Path, images: list[Any], annotations: list[Any], told: str
) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(InputError, match=told):
        read_pairs(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="this is no JSON"):
        read_pairs(tmp_path / "c.json")


def test_what_holds_no_pairs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "x.bin", r"x\.bin: no pictures with texts can be read from it; give \.jsonl"),
        (tmp_path / "empty", "empty: no pictures; give pictures with texts"),
        ([], "the list of data paths is empty"),
        (str(tmp_path / "*.tar"), "no file matches this pattern"),
    ):
        with pytest.raises(InputError, match=message):
            read_pairs(path)
    with pytest.raises(InputError, match="names no column"):
        read_pairs(tmp_path / "empty", text="name,,keywords")


@given(
    groups=st.lists(st.sampled_from("abcdefg"), min_size=2, max_size=60).filter(lambda each: len(set(each)) > 1),
    seed=st.integers(0, 99),
)
def test_no_concept_is_in_both_parts_of_a_split(groups: list[str], seed: int) -> None:
    pairs = Pairs([None] * len(groups), [(str(i),) for i in range(len(groups))], groups, {})  # type: ignore[list-item]
    try:
        rest, held = split_pairs(pairs, 0.3, seed)
    except InputError:
        assert max(groups.count(each) for each in groups) >= 0.3 * len(groups)
        return
    assert not set(rest.groups) & set(held.groups)
    assert sorted(rest.texts + held.texts, key=lambda text: int(text[0])) == pairs.texts
    assert len(held) >= round(0.3 * len(groups)) > len(held) - max(groups.count(each) for each in held.groups)


@given(
    texts=st.lists(st.text(min_size=1, max_size=5).filter(lambda t: "{" not in t), min_size=1, max_size=6, unique=True),
    whole=st.integers(0, 6),
    step=st.integers(0, 10**9),
)
def test_a_drawn_text_is_made_of_the_pictures_texts(texts: list[str], whole: int, step: int) -> None:
    whole = min(whole, len(texts))
    text = drawn_text(texts, ["a {}!"], 3, step, 7, whole)
    assert text == drawn_text(list(texts), ["a {}!"], 3, step, 7, whole)
    shown = text.removeprefix("a ").removesuffix("!")
    keywords = texts[whole:]
    joined = {", ".join([a, b, c][:count]) for count in (1, 2, 3) for a in keywords for b in keywords for c in keywords}
    assert shown in set(texts[:whole]) | joined


def test_names_keywords_and_templates_are_all_drawn() -> None:
    texts, templates = ("heart", "love", "red", "valentine", "card"), ("{}", "a picture of {}")
    drawn = [drawn_text(texts, templates, 0, step, row, 1) for step in range(40) for row in range(25)]
    names = sum("heart" in text for text in drawn)
    assert 440 < names < 560 and 440 < sum(text.startswith("a picture of ") for text in drawn) < 560
    assert {text.count(",") + 1 for text in drawn if "heart" not in text} == {*range(1, JOINED + 1)}
    assert {drawn_text(texts, ["{}"], 0, step, 0) for step in range(99)} == set(texts), "all are as likely"


def test_a_fingerprint_knows_pictures_texts_and_groups(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    file = tmp_path / "t.jsonl"

    def mark(**row: Any) -> str:
        file.write_text(json.dumps({"image": "a.png", "text": "one", "kind": "k"} | row) + "\n")
        return read_pairs(file, group="kind").fingerprint(tmp_path / "cache")

    first = mark()
    assert first == mark() and len({first, mark(text="two"), mark(kind="l")}) == 3


@pytest.mark.skipif(not (SHARED / "emoji").is_dir(), reason="needs the shared data")
def test_emoji() -> None:
    pairs = read_pairs([SHARED / "emoji" / f"{style}.tar" for style in ("noto", "fluent")], text="name,keywords")
    assert len(pairs) == 7158 and len(set(pairs.groups)) == 3786
    assert set(pairs.whole) == {1} and "pictures without a text" not in pairs.dropped


def test_a_key_that_no_picture_has_is_told(tmp_path: Path) -> None:
    members = {"1.png": png(1), "1.json": json.dumps({"name": "heart", "base": "heart"}).encode()}
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=r"no picture has 'bse' beside it"):
        read_pairs(path, text="name", group="bse")
    with pytest.raises(InputError, match=r"no picture has 'keywrds' beside it"):
        read_pairs(path, text="name,keywrds")
    assert read_pairs(path, text="name,keywrds", strict=False).texts == [("heart",)]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.png").write_bytes(png(1))
    (tmp_path / "folder" / "1.txt").write_text("a heart")
    assert read_pairs(tmp_path / "folder", text="caption").texts == [("a heart",)]
    both = write_tar(tmp_path / "y.tar", members | {"1.txt": b"a heart"})
    assert read_pairs(both, text="txt", group="base").groups == ["heart"]
