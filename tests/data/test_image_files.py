import csv
import json
import pickle
import shutil
import tarfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data import image_refs
from bedplate.data.image_files import (
    ImageRef,
    LabelledImages,
    fingerprint,
    read_images,
    sample_images,
    split_images,
)
from bedplate.errors import InputError

from .pictures import encoded, noise, save, write_idx
from .writers import compress, write_tar

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def shown(data: LabelledImages) -> list[tuple[int, str | None]]:
    """(seed of the picture, label) of each."""
    seeds = {noise(8, 8, seed).tobytes(): seed for seed in range(20)}
    labels: list[Any] = data.labels or [None] * len(data)
    return [(seeds[np.asarray(ref.image()).tobytes()], label) for ref, label in zip(data.images, labels, strict=True)]


def png(seed: int) -> bytes:
    return encoded(noise(8, 8, seed))


def write_parquet(path: Path, images: list[Any], labels: list[Any] | None, names: list[str] | None = None) -> Path:
    columns: dict[str, Any] = {"image": pa.array(images, STRUCT)}
    if labels is not None:
        columns["label"] = labels
    table = pa.table(columns)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)
    return path


def hub_rows(count: int) -> list[dict[str, Any]]:
    return [{"bytes": png(i), "path": None} for i in range(count)]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "a.png", 0)
    save(tmp_path / "cat" / "b.PNG", 1)
    save(tmp_path / "cat" / "more" / "a.bmp", 2)
    save(tmp_path / "cat" / ".hidden.png", 3)
    save(tmp_path / "__MACOSX" / "cat" / "b.png", 3)
    save(tmp_path / "stray.png", 4)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    for empty in ("bird", "fish/more", ".cache"):
        (tmp_path / empty).mkdir(parents=True)
    data = read_images(tmp_path)
    assert shown(data) == [(1, "cat"), (2, "cat"), (0, "dog")]
    assert data.classes == ["cat", "dog"] and data.targets is not None and data.targets.tolist() == [0, 0, 1]
    assert data.sources[0] == str(tmp_path / "cat" / "b.PNG")
    assert data.dropped == {
        "hidden files": 2,
        "empty folders": 2,
        "files of other kinds": 1,
        "pictures outside of the class folders": 1,
    }
    assert read_images(tmp_path, label="").labels is None
    with pytest.raises(InputError, match=r"b\.PNG: label 'cat' is not among .* 'Cat', 'dog' \(did you mean 'Cat'\?\)"):
        read_images(tmp_path, classes=["Cat", "dog"])
    assert read_images(tmp_path, classes=["dog", "cat"]).classes == ["dog", "cat"]


@pytest.mark.parametrize("above", ["", "data", "data/images"])
def test_the_train_part_of_a_folder(tmp_path: Path, above: str) -> None:
    for split, seed in (("train", 0), ("val", 2), ("test", 4)):
        save(tmp_path / above / split / "cat" / "a.png", seed)
        save(tmp_path / above / split / "dog" / "a.png", seed + 1)
    (tmp_path / "README.md").write_text("about")
    data = read_images(tmp_path)
    assert shown(data) == [(0, "cat"), (1, "dog")]
    assert data.dropped == {"files of other kinds": 1, "files of other splits": 4}
    assert shown(read_images(tmp_path / above / "val")) == [(2, "cat"), (3, "dog")]


def test_folders_behind_links_are_read_and_circles_are_not_walked(tmp_path: Path) -> None:
    for seed, name in enumerate(("whole/cat", "whole/dog", "elsewhere/emu")):
        save(tmp_path / name / "0.png", seed)
    (tmp_path / "whole" / "emu").symlink_to(tmp_path / "elsewhere" / "emu")
    (tmp_path / "whole" / "dog" / "back").symlink_to(tmp_path / "whole")
    assert shown(read_images(tmp_path / "whole")) == [(0, "cat"), (1, "dog"), (2, "emu")]


def test_class_folders_named_like_splits_stay(tmp_path: Path) -> None:
    for seed, name in enumerate(("test_tube", "train_station", "tree")):
        save(tmp_path / name / "a.png", seed)
    assert shown(read_images(tmp_path)) == [(0, "test_tube"), (1, "train_station"), (2, "tree")]


def test_pictures_without_labels(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "all" / f"{seed}.png", seed)
    for path in (tmp_path, tmp_path / "all", tmp_path / "all" / "*.png", str(tmp_path / "**" / "*.png")):
        data = read_images(path)
        assert shown(data) == [(0, None), (1, None), (2, None)]
        assert data.targets is None and data.classes == []
    one = tmp_path / "all" / "1.png"
    assert shown(read_images([one, tmp_path / "all"])) == [(1, None), (0, None), (1, None), (2, None)]
    assert [len(part) for part in split_images(read_images(tmp_path), 0.34, 0)] == [2, 1]


def test_a_glob_has_labels_by_folder(tmp_path: Path) -> None:
    save(tmp_path / "x" / "cat" / "a.png", 0)
    save(tmp_path / "x" / "dog" / "a.png", 1)
    assert shown(read_images(tmp_path / "x" / "*" / "*.png")) == [(0, "cat"), (1, "dog")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    ("image", "label"), [("file_name", "label"), ("image", "Category"), ("where it is", "class"), ("id", "target")]
)
def test_tables_of_paths(tmp_path: Path, kind: str, image: str, label: str) -> None:
    for seed in range(3):
        save(tmp_path / "pictures" / f"{seed}.png", seed)
    rows = [{"n": str(i), image: f"pictures/{i}.png", label: "even" if i % 2 == 0 else "odd"} for i in range(3)]
    rows.append({"n": "3", image: "", label: "odd"})
    rows.append({"n": "4", image: str(tmp_path / "pictures" / "0.png"), label: ""})
    path = tmp_path / f"x.{kind}"
    if kind.startswith("jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(compress(text.encode(), kind.partition(".")[2]))
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    data = read_images(path)
    assert shown(data) == [(0, "even"), (1, "odd"), (2, "even")]
    assert data.dropped == {"rows without a picture": 1, "missing labels": 1}
    assert f"x.{kind}:" in data.sources[0] and "0.png" in data.sources[0]
    assert shown(read_images(path, image=image, label="")) == [(0, None), (1, None), (2, None), (0, None)]


def test_metadata_beside_pictures(tmp_path: Path) -> None:
    for seed in range(2):
        save(tmp_path / "train" / f"{seed}.png", seed)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.png,b\n1.png,a\n")
    assert shown(read_images(tmp_path)) == [(0, "b"), (1, "a")]
    assert read_images(tmp_path).dropped == {}
    save(tmp_path / "train" / "2.png", 2)
    save(tmp_path / "more" / "3.png", 3)
    found = read_images(tmp_path)
    assert len(found) == 2 and found.dropped == {"pictures that no metadata file names": 2}


def test_pictures_behind_the_paths_of_a_parquet_file_may_change(tmp_path: Path) -> None:
    save(tmp_path / "0.png", 0)
    table = pa.table({"image": ["0.png", "1.png", None], "label": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "x.parquet")
    found = read_images(tmp_path / "x.parquet")
    assert len(found) == 2 and found.dropped == {"rows without a picture": 1}
    before = fingerprint(found, tmp_path / "cache")
    save(tmp_path / "1.png", 1)
    after = read_images(tmp_path / "x.parquet")
    assert shown(after) == [(0, "a"), (1, "b")]
    assert fingerprint(after, tmp_path / "cache") != before


@pytest.mark.parametrize("compression", ["", "gz"])
def test_parquet_as_the_hub_has_it(tmp_path: Path, compression: str) -> None:
    save(tmp_path / "beside.png", 5)
    images = [*hub_rows(5), {"bytes": None, "path": "beside.png"}]
    path = write_parquet(tmp_path / "x.parquet", images, [1, 0, 1, 1, -1, 0], ["no", "yes"])
    if compression:
        path = path.with_suffix(".parquet.gz")
        path.write_bytes(compress((tmp_path / "x.parquet").read_bytes(), compression))
    data = read_images(path)
    if compression:  # the schema is not looked for there: numbers stay numbers
        assert data.labels == ["1", "0", "1", "1", "-1", "0"]
        assert [seed for seed, _ in shown(data)] == [0, 1, 2, 3, 4, 5]
        return
    assert shown(data) == [(0, "yes"), (1, "no"), (2, "yes"), (3, "yes"), (5, "no")]
    assert data.dropped == {"missing labels": 1} and data.classes == ["no", "yes"]
    assert data.sources[1] == f"{path}:2"
    assert shown(pickle.loads(pickle.dumps(data))) == shown(data)


@pytest.mark.parametrize("feature", [[{"names": ["cat"]}], "ClassLabel", {"names": 3}, None])
def test_a_schema_that_names_no_classes_in_the_known_form(tmp_path: Path, feature: Any) -> None:
    path = write_parquet(tmp_path / "t.parquet", hub_rows(2), ["a", "b"])
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert shown(read_images(path)) == [(0, "a"), (1, "b")]


def test_row_groups_are_kept_up_to_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write_parquet(tmp_path / f"{i}.parquet", hub_rows(8), None) for i in range(3)]
    group = 2 * len(png(0)) + 64  # bytes of a group of two rows, and a little
    kept = image_refs._Groups(most=3 * group)
    monkeypatch.setattr(image_refs, "_groups", kept)
    refs = [ref for file in files for ref in read_images(file, label="").images]
    for ref in (refs[i] for i in np.random.default_rng(0).integers(0, len(refs), 60)):
        assert ref.read() == png(ref.place)
        assert 1 <= len(kept._held) <= 3


def test_parquet_of_bytes_without_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"png": [png(1), png(0)], "text": ["a", "b"]}), tmp_path / "x.parquet")
    assert shown(read_images(tmp_path / "x.parquet")) == [(1, None), (0, None)]


def test_a_row_of_the_hub_without_a_picture(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [*hub_rows(2), {"bytes": None, "path": None}], None)
    data = read_images(path)
    assert shown(data.select([0, 1])) == [(0, None), (1, None)]
    with pytest.raises(InputError, match=r"x\.parquet:3: 'image' holds no picture"):
        data.images[2].read()


def test_a_table_that_changes_is_read_anew(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", hub_rows(2), None)
    assert shown(read_images(path)) == [(0, None), (1, None)]
    write_parquet(path, hub_rows(4)[2:], None)
    assert shown(read_images(path)) == [(2, None), (3, None)]


MEMBERS = {
    "webdataset": ({f"{i}.png": png(i) for i in range(3)} | {f"{i}.cls": str(i % 2).encode() for i in range(3)}, None),
    "text": ({f"s/{i}.png": png(i) for i in range(3)} | {f"s/{i}.txt": f"{i % 2}\n".encode() for i in range(3)}, None),
    "json": (
        {f"{i}.a.png": b"no" for i in range(2)}
        | {f"{i}.png": png(i) for i in range(3)}
        | {f"{i}.json": json.dumps({"label": i % 2, "x": "y"}).encode() for i in range(3)},
        None,
    ),
    "named": (
        {f"{i}.png": png(i) for i in range(3)}
        | {f"{i}.json": json.dumps({"label": "no", "kind": i % 2}).encode() for i in range(3)},
        "kind",
    ),
    "folders": ({f"x/{i % 2}/{i}.png": png(i) for i in range(3)}, None),
}


@pytest.mark.parametrize("form", MEMBERS)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.zst"])
def test_tar_archives(tmp_path: Path, form: str, suffix: str) -> None:
    members, label = MEMBERS[form]
    hidden = {"._0.png": b"x"}
    compression = {"tgz": "gz"}.get(suffix, suffix.partition(".")[2])
    path = write_tar(tmp_path / f"x.{suffix}", members | hidden, compression)
    data = read_images(path, label=label)
    assert sorted(shown(data)) == [(0, "0"), (1, "1"), (2, "0")]
    assert data.dropped["hidden files"] == 1
    assert data.dropped.get("files of other kinds", 0) == (2 if form == "json" else 0)
    assert f"x.{suffix}::" in data.sources[0]
    assert read_images(path, label="").labels is None


def test_names_with_dots_in_a_tar_are_pictures_but_for_those_beside_one(tmp_path: Path) -> None:
    members = {"cat/img_v1.2.png": png(0), "cat/shot 10.30.PNG": png(1), "dog/2.png": png(2), "dog/3.jpg.png": png(3)}
    data = read_images(write_tar(tmp_path / "names.tar", members))
    assert shown(data) == [(0, "cat"), (1, "cat"), (2, "dog"), (3, "dog")] and not data.dropped
    members = {"7.png": png(4), "7.mask.png": png(5), "7.CLS": b"cat", "8.left.png": png(6), "8.cls": b"dog"}
    members |= {"9.png": png(7), "9.cls": b"dog"}
    data = read_images(write_tar(tmp_path / "keys.tar", members))
    assert shown(data) == [(4, "cat"), (7, "dog")] and data.dropped == {"files of other kinds": 2}


def test_a_tar_without_labels_has_none(tmp_path: Path) -> None:
    data = {"a.png": png(0), "a.json": b'{"caption": "x"}', "b.png": png(1), "b.json": b'{"caption": "y"}'}
    path = write_tar(tmp_path / "x.tar", data)
    assert shown(read_images(path)) == [(0, None), (1, None)]
    with pytest.raises(InputError, match=r"x\.tar: no labels in 'kind'; name the column"):
        read_images(path, label="kind")


@pytest.mark.parametrize("compression", ["", "gz"])
@pytest.mark.parametrize("damage", [b"half a header", b"x" * 512])
def test_a_cut_or_damaged_header_of_a_tar_is_told(tmp_path: Path, compression: str, damage: bytes) -> None:
    whole = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        end = archive.getmembers()[2].offset
    path = tmp_path / f"y.tar{compression and '.'}{compression}"
    path.write_bytes(compress(whole[:end] + damage, compression))
    with pytest.raises(InputError, match=rf"{path.name}: truncated or corrupt \(.* in place of a member or the end"):
        read_images(path)


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_tar_may_end_behind_a_member(tmp_path: Path, compression: str) -> None:
    whole = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(3)}).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        end = archive.getmembers()[2].offset
    path = tmp_path / f"y.tar{compression and '.'}{compression}"
    path.write_bytes(compress(whole[:end], compression))
    assert len(read_images(path)) == 2


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path / "file"))
    path = write_tar(tmp_path / "x.tar.gz", {"a.png": png(0)}, "gz")
    with pytest.raises(InputError, match=r"file/remote/\w+: cannot be made or written to \(.*set BEDPLATE_CACHE"):
        read_images(path)


@pytest.mark.parametrize("dash", ["-", "."])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_idx_files(tmp_path: Path, gz: str, dash: str) -> None:
    greys = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    for part, count in (("train", 5), ("t10k", 2)):
        write_idx(tmp_path / f"{part}-images{dash}idx3-ubyte{gz}", greys[:count])
        write_idx(tmp_path / f"{part}-labels{dash}idx1-ubyte{gz}", np.array([7, 3, 7, 0, 3], np.uint8)[:count])
    data = read_images(tmp_path)
    assert data.labels == ["7", "3", "7", "0", "3"] and data.classes == ["0", "3", "7"]
    assert data.dropped == {"files of other splits": 1}
    assert np.array_equal(np.asarray(data.images[2].image())[..., 1], greys[2])
    assert len(read_images(tmp_path / f"t10k-images{dash}idx3-ubyte{gz}")) == 2
    (tmp_path / f"train-labels{dash}idx1-ubyte{gz}").unlink()
    assert read_images(tmp_path).labels is None


class FakeRows(list[dict[str, Any]]):
    def decode(self, enable: bool) -> "FakeRows":
        assert not enable
        return self


class FakeHub(types.ModuleType):
    """Stands in for the `datasets` library, which needs the network."""

    def load_dataset(self, name: str, config: str | None, *, split: str, streaming: bool) -> FakeRows:
        return FakeRows({"image": {"bytes": png(i), "path": "x.png"}, "label": i % 2} for i in range(3))

    def load_dataset_builder(self, name: str, config: str | None) -> types.SimpleNamespace:
        features = {"label": types.SimpleNamespace(names=["yes", "no"]), "image": types.SimpleNamespace()}
        return types.SimpleNamespace(info=types.SimpleNamespace(features=features))


def test_data_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", FakeHub("datasets"))
    data = read_images("hf:org/name")
    assert shown(data) == [(0, "yes"), (1, "no"), (2, "yes")] and data.classes == ["yes", "no"]
    assert data.sources[0] == "hf:org/name:1"


def test_the_real_library_gives_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    path = write_parquet(tmp_path / "x.parquet", hub_rows(2), [0, 1], ["yes", "no"])
    monkeypatch.setattr(datasets, "load_dataset_builder", FakeHub("x").load_dataset_builder)
    real = datasets.load_dataset

    def local(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        return real("parquet", data_files=str(path), split=split, streaming=streaming, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert shown(read_images("hf:org/name")) == [(0, "yes"), (1, "no")]


def test_urls(tmp_path: Path) -> None:
    import fsspec

    path = write_parquet(tmp_path / "x.parquet", hub_rows(3), ["a", "b", "a"])
    archive = write_tar(tmp_path / "y.tar", MEMBERS["webdataset"][0])
    with fsspec.open("memory://pictures/x.parquet", "wb") as file:
        file.write(path.read_bytes())
    with fsspec.open("memory://pictures/y.tar", "wb") as file:
        file.write(archive.read_bytes())
    assert shown(read_images("memory://pictures/x.parquet")) == [(0, "a"), (1, "b"), (2, "a")]
    assert shown(read_images("memory://pictures")) == [(0, "a"), (1, "b"), (2, "a"), (0, "0"), (1, "1"), (2, "0")]


def test_what_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.doc").write_text("x")
    (tmp_path / "a.csv").write_text("name,label\na,1\nb,2\n")
    (tmp_path / "b.csv").write_text("left,right,label\na.png,b.png,1\nb.png,c.png,0\n")
    (tmp_path / "c.jsonl").write_text('{"image": 5, "label": 1}\n')
    (tmp_path / "d.csv").write_text("image,label\n" + "".join(f"{i}.png,{i}\n" for i in range(30)))
    (tmp_path / "h.csv").write_text("".join(f"{i}.png,{i % 2}\n" for i in range(9)))
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\1")
    (tmp_path / "e.tar").write_bytes(b"no archive" * 100)
    write_tar(tmp_path / "f.tar", {"a.png": png(0), "a.json": b"{"})
    write_tar(tmp_path / "i.tar", {"a.png": png(0), "a.json": b"[" * 100_000})
    write_parquet(tmp_path / "g.parquet", hub_rows(2), [0, 5], ["a", "b"])
    for name, image, label, said in [
        ("nowhere", None, None, "nowhere: no such file or folder"),
        ("*.none", None, None, "no file matches this pattern"),
        ("empty", None, None, "empty: no pictures; known suffixes are .jpg"),
        ("x.doc", None, None, "no picture and no table or archive of them"),
        (
            "a.csv",
            None,
            None,
            "not clear which column holds the pictures: present are 'name', 'label'; name the column",
        ),
        ("b.csv", None, None, "of which 'left', 'right' could be it; name the column: data.image="),
        ("b.csv", "middle", None, "no column 'middle'"),
        ("b.csv", "left", "kind", "no column 'kind'"),
        ("c.jsonl", "image", None, "c.jsonl:1: 'image' holds int, no path or picture"),
        ("d.csv", None, None, "30 distinct labels in 30 rows: is 'label' the label column"),
        ("train-images-idx3-ubyte", None, None, "no IDX file of unsigned bytes, or not whole"),
        ("e.tar", None, None, "e.tar: truncated or corrupt"),
        ("h.csv", None, None, "h.csv: its first line looks like a row, not like the names of columns; put image,label"),
        ("f.tar", None, None, "f.tar::a.json: no label can be read"),
        ("i.tar", None, None, "i.tar::a.json: no label can be read"),
        ("g.parquet", None, None, "g.parquet:2: 'label' is 5, but the schema names 2 classes"),
    ]:
        with pytest.raises(InputError) as error:
            read_images(tmp_path / name, image, label)
        assert said in str(error.value), name
    with pytest.raises(InputError, match="the list of data paths is empty"):
        read_images([])


LABELS = st.lists(st.sampled_from("aaaabbc"), min_size=2, max_size=60)


@given(LABELS, st.integers(0, 9), st.data())
def test_parts_in_proportion(labels: list[str], seed: int, draw: st.DataObject) -> None:
    refs = [ImageRef(f"{i}", f"{i}") for i in range(len(labels))]
    data = LabelledImages(refs, labels, ["a", "b", "c"], {})
    count = draw.draw(st.integers(len(set(labels)), len(labels)))
    part = sample_images(data, count, seed)
    assert len(part) == count and set(part.labels or ()) == set(labels) and part.classes == data.classes
    larger = sample_images(data, len(labels), seed)
    assert set(part.sources) <= set(larger.sources) and larger == data
    assert all(labels[int(ref.where)] == label for ref, label in zip(part.images, part.labels or (), strict=True))


def test_fingerprints_are_of_the_contents(tmp_path: Path) -> None:
    for seed, name in enumerate(("cat", "dog")):
        save(tmp_path / "x" / name / "a.png", seed)
    first = fingerprint(read_images(tmp_path / "x"), tmp_path / "cache")
    assert len(first) == 32
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    assert fingerprint(read_images(tmp_path / "y"), tmp_path / "cache") == first
    assert fingerprint(read_images(tmp_path / "x", label=""), tmp_path / "cache") != first
    assert fingerprint(read_images(tmp_path / "x").select([1, 0]), tmp_path / "cache") != first
    save(tmp_path / "y" / "dog" / "a.png", 2)
    assert fingerprint(read_images(tmp_path / "y"), tmp_path / "cache") != first


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
def test_real_data() -> None:
    data = read_images(SHARED / "cifar10" / "test.parquet")
    assert len(data) == 10_000 and len(data.classes) == 10 and data.images[9_999].image().size == (32, 32)
    emoji = read_images(SHARED / "emoji" / "fluent.tar", label="group")
    assert len(emoji) == 3372 and "food & drink" in emoji.classes
    assert emoji.dropped == {"pictures replaced by a later one of their name": 2}
    assert len(read_images(SHARED / "bccd" / "train")) == 205


def test_labels_that_are_only_scored_need_not_repeat(tmp_path: Path) -> None:
    rows = [(f"{i}.png", f"thing {i}") for i in range(25)]
    for i, (name, _) in enumerate(rows):
        (tmp_path / name).write_bytes(png(i))
    table = tmp_path / "rows.csv"
    table.write_text("image,name\n" + "".join(f"{name},{label}\n" for name, label in rows), "utf-8")
    with pytest.raises(InputError, match="25 distinct labels in 25 rows"):
        read_images(table, label="name")
    assert read_images(table, label="name", to_learn=False).classes == sorted(label for _, label in rows)
