import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bedplate.data.box_loader import box_store
from bedplate.data.boxes import BoxedImages, read_boxes
from bedplate.data.image_refs import ImageRef
from bedplate.errors import InputError

BCCD = Path(__file__).parents[2] / ".." / "shared" / "data" / "bccd"


def picture(path: Path, width: int = 100, height: int = 80, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), (200, 60, 60)).save(path, exif=exif)
    return path


def annotation(number, image, category, *bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def coco(folder: Path, annotations, *, categories=None, images=None, name="annotations.json", draw=True) -> Path:
    """A COCO folder of pictures 100 wide and 80 high."""
    images = images or [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}]
    images = [{"width": 100, "height": 80} | image for image in images]
    folder.mkdir(parents=True, exist_ok=True)
    if draw:
        for image in images:
            picture(folder / image["file_name"])
    categories = categories or [{"id": 5, "name": "cat"}, {"id": 90, "name": "dog"}]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return folder


def voc(
    folder: Path, name: str, objects: str, *, filename: str | None = None, size=(100, 80), to="Annotations"
) -> Path:
    (folder / to).mkdir(parents=True, exist_ok=True)
    (folder / to / f"{name}.xml").write_text(
        f"<annotation><filename>{filename or name + '.jpg'}</filename><size><width>{size[0]}</width>"
        f"<height>{size[1]}</height></size>{objects}</annotation>"
    )
    return folder


def voc_object(name: str, *corners: object, difficult: int = 0) -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def yolo(folder: Path, labels: dict[str, str], *, yaml: str | None = "names: [cat, dog]\n") -> Path:
    for name, lines in labels.items():
        picture(folder / "images" / f"{name}.jpg")
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{name}.txt").write_text(lines)
    if yaml is not None:
        (folder / "data.yaml").write_text(yaml)
    return folder


# COCO


def test_coco_keeps_pictures_without_objects_and_ids_that_have_gaps(tmp_path: Path) -> None:
    read = read_boxes(coco(tmp_path, [annotation(0, 7, 90, 10, 20, 30, 40), annotation(1, 7, 5, 0, 0, 100, 80)]))
    assert [Path(image.file).name for image in read.images] == ["a.png", "b.png"]
    np.testing.assert_array_equal(read.boxes[0], [[10, 20, 40, 60], [0, 0, 100, 80]])
    assert read.boxes[1].shape == (0, 4) and read.boxes[1].dtype == np.float32
    assert (read.names, read.ids) == (["cat", "dog"], [5, 90])
    assert [classes.tolist() for classes in read.classes] == [[1, 0], []]
    assert read.sizes.tolist() == [[80, 100], [80, 100]] and read.dropped == {} and read.clipped == 0
    assert read.counts() == {"cat": 1, "dog": 1}


@pytest.mark.parametrize(
    ("json_at", "picture_at"),
    [
        ("_annotations.coco.json", "a.png"),
        ("anything.json", "images/a.png"),
        ("annotations/anything.json", "images/a.png"),
        ("annotations/instances_train2017.json", "train2017/a.png"),
        ("annotations/train.json", "images/train/a.png"),
    ],
)
def test_coco_is_found_in_the_usual_layouts(tmp_path: Path, json_at: str, picture_at: str) -> None:
    picture(tmp_path / picture_at)
    images = [{"id": 1, "file_name": "a.png"}]
    coco(tmp_path, [annotation(0, 1, 5, 1, 1, 5, 5)], name=json_at, images=images, draw=False)
    for path in (tmp_path, tmp_path / json_at):
        assert read_boxes(path).boxes[0].tolist() == [[1, 1, 6, 6]]


def test_boxes_are_cut_at_the_edge_and_those_without_area_are_dropped(tmp_path: Path) -> None:
    read = read_boxes(
        coco(
            tmp_path,
            [
                annotation(0, 7, 5, -10, -5, 30, 300),  # over three edges
                annotation(1, 7, 5, 99.8, 10, 0.6, 10),  # over the edge by what rounding explains
                annotation(2, 7, 5, 10, 10, 0, 10),
                annotation(3, 7, 5, 10, 10, 5, -2),
                annotation(4, 3, 5, 100, 10, 5, 5),  # begins where the picture ends
            ],
        )
    )
    np.testing.assert_allclose(read.boxes[0], [[0, 0, 20, 80], [99.8, 10, 100, 20]], rtol=1e-6)
    assert len(read.boxes[1]) == 0
    assert read.dropped == {"boxes without area": 2, "boxes outside of their picture": 1} and read.clipped == 1


def test_crowds_are_kept_apart(tmp_path: Path) -> None:
    rows = [annotation(0, 7, 5, 0, 0, 50, 50, iscrowd=1), annotation(1, 7, 5, 1, 1, 5, 5, iscrowd=0)]
    read = read_boxes(coco(tmp_path, rows))
    assert read.crowd[0].tolist() == [True, False] and read.counts() == {"cat": 1, "dog": 0}
    assert read.truth()[0]["crowd"].tolist() == [True, False]
    rows = [annotation(i, 7, 5, 0, 0, 5, 5, iscrowd=crowd) for i, crowd in enumerate((True, False, None))]
    assert read_boxes(coco(tmp_path, rows)).crowd[0].tolist() == [True, False, False]


def test_a_class_without_a_box_is_kept_but_for_the_dummy_of_roboflow(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    rows = [annotation(0, 7, 1, 0, 0, 5, 5)]
    read = read_boxes(coco(tmp_path / "a", rows, categories=categories))
    assert (read.names, read.ids) == (["cat", "dog"], [1, 2])
    read = read_boxes(coco(tmp_path / "b", [*rows, annotation(1, 7, 0, 0, 0, 5, 5)], categories=categories))
    assert read.names == ["pets", "cat", "dog"], "what has a box is no dummy"
    own = [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 2, "name": "cat", "supercategory": "animal"}]
    read = read_boxes(coco(tmp_path / "c", [annotation(0, 7, 2, 0, 0, 5, 5)], categories=own))
    assert read.names == ["person", "cat"], "COCO's person is its own supercategory"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"annotations": [annotation(4, 7, 5, 0, 0, math.nan, 5)]}, "annotation 4.*no finite number"),
        ({"annotations": [annotation(4, 7, 5, 0, 0, math.inf, 5)]}, "annotation 4.*no finite number"),
        ({"annotations": [annotation(4, 7, 5, 0, 0, 5)]}, "annotation 4: bbox .*4 numbers"),
        ({"annotations": [annotation(4, 7, 5, 10**400, 0, 5, 5)]}, "annotation 4: bbox .* holds a number that is too"),
        ({"images": [{"id": 1, "file_name": "a" * 300}]}, r"image 1 \('a+'\) is not in"),
        ({"annotations": [annotation(4, 99, 5, 0, 0, 5, 5)]}, "annotation 4 is of image 99"),
        ({"annotations": [annotation(4, 7, 6, 0, 0, 5, 5)]}, "annotation 4: category_id 6"),
        ({"annotations": [{"id": 4, "image_id": 7}]}, "annotation 4: needs .*bbox"),
        ({"annotations": [annotation(4, [7], 5, 0, 0, 5, 5)]}, r"annotation 4: image_id \[7\] is neither"),
        ({"annotations": [annotation(4, 7, {}, 0, 0, 5, 5)]}, "annotation 4: category_id {} is neither"),
        ({"annotations": [annotation(4, 7, 5, 0, 0, 5, 5, iscrowd="0")]}, "annotation 4: iscrowd '0' is neither 0 nor"),
        ({"annotations": [annotation(4, 7, 5, 0, 0, 5, 5, iscrowd=2)]}, "annotation 4: iscrowd '2' is neither 0 nor"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, r"image entry number 0: id \[1\] is neither"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 100, "height": "80"}]}, "image 1 .*: height '80' is no"),
        ({"categories": [{"id": 5, "name": 3}]}, "the name 3 of category 5 is no text"),
        ({"categories": [{"id": {}, "name": "cat"}]}, "category entry number 0: id {} is neither"),
        (
            {"categories": [{"id": 5, "name": "cat", "supercategory": ["x"]}]},
            "supercategory .* of category 5 is no",
        ),
        (
            {"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]},
            "1 is the id of more than one",
        ),
        ({"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]}, "a.png.*two entries of one"),
        ({"images": [{"id": 1, "file_name": "gone.png"}]}, r"image 1 \('gone.png'\) is not in"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 101, "height": 80}]}, "'a.png'.*101 x 80.*100 x 80"),
        ({"images": [{"id": 1}]}, "image entry number 0 needs id and file_name"),
        ({"images": []}, "no pictures"),
        ({"categories": [{"id": 5, "name": "cat"}, {"id": 5, "name": "dog"}]}, "5 is the id of more than one category"),
        ({"categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "cat"}]}, "two categories of one name"),
        ({"categories": []}, "no class"),
        ({"images": None}, "COCO JSON is an object with lists"),
    ],
)
def test_coco_that_contradicts_itself_is_refused(tmp_path: Path, change: dict, match: str) -> None:
    file = coco(tmp_path, []) / "annotations.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=match) as raised:
        read_boxes(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = coco(tmp_path / "json", [])
    for damaged in ('{"images": [', "[" * 100_000):
        (folder / "annotations.json").write_text(damaged)
        with pytest.raises(InputError, match=r"annotations.json: this is no JSON"):
            read_boxes(folder)
    folder = voc(tmp_path / "voc", "p", "")
    (folder / "Annotations" / "p.xml").write_bytes(b"<?xml version='1.0' encoding='foo'?><annotation/>")
    with pytest.raises(InputError, match=r"p.xml: this is no XML \(unknown encoding: foo\)"):
        read_boxes(folder)


@pytest.mark.parametrize("name", ["labels/a.txt", "classes.txt", "data.yaml"])
def test_yolo_files_that_are_no_utf8_are_named(tmp_path: Path, name: str) -> None:
    folder = yolo(tmp_path, {"a": "0 0.5 0.5 1 1"}, yaml=None if name == "classes.txt" else "names: [cat, dog]\n")
    (folder / name).write_bytes("names: [h\u00e9ron]".encode("latin-1"))
    with pytest.raises(InputError, match=f"{name}: not UTF-8 at byte 9 .*re-encode it"):
        read_boxes(folder)


def test_pictures_that_cannot_be_read_are_broken_and_not_the_whole_set(tmp_path: Path) -> None:
    rows = [annotation(0, 7, 5, 0, 0, 5, 5), annotation(1, 3, 5, 50, 50, 5, 5)]
    coco(tmp_path / "coco", rows)
    (tmp_path / "coco" / "b.png").write_bytes(b"no picture")
    picture(tmp_path / "voc" / "JPEGImages" / "a.jpg")
    (tmp_path / "voc" / "JPEGImages" / "b.jpg").write_bytes(b"")
    for name in "ab":
        voc(tmp_path / "voc", name, voc_object("cat", 1, 1, 5, 5))
    yolo(tmp_path / "yolo", {"a": "0 0.1 0.1 0.1 0.1", "b": "0 0.1 0.1 0.1 0.1"})
    (tmp_path / "yolo" / "images" / "b.jpg").write_bytes(b"\xff\xd8\xff")
    for name in ("coco", "voc", "yolo"):
        read = read_boxes(tmp_path / name)
        assert [len(boxes) for boxes in read.boxes] == [1, 0] and read.dropped == {}, name
        store = box_store(read, (8, 10), tmp_path / "cache", workers=1)
        assert store.usable.tolist() == [0] and len(store.broken) == 1 and str(read.images[1].file) in store.broken[0]


def test_sizes_and_boxes_are_of_the_turned_picture(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": 80, "height": 100}]
    folder = coco(tmp_path, [annotation(0, 1, 5, 0, 90, 80, 10)], images=images, draw=False)
    picture(folder / "a.jpg", 100, 80, orientation=6)
    read = read_boxes(folder)
    assert read.sizes.tolist() == [[100, 80]] and read.boxes[0].tolist() == [[0, 90, 80, 100]] and read.clipped == 0
    picture(folder / "a.jpg", 80, 100, orientation=6)
    with pytest.raises(InputError, match=r"a.jpg.*said to be 80 x 100.*shown turned, 100 x 80.*EXIF"):
        read_boxes(folder)


def test_a_turned_tiff_has_the_size_that_is_shown(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.tif", "width": 80, "height": 100}]
    folder = coco(tmp_path, [annotation(0, 1, 5, 0, 90, 80, 10)], images=images, draw=False)
    picture(folder / "a.tif", 100, 80, orientation=6)
    read = read_boxes(folder)
    assert read.images[0].image().size == (80, 100) and read.sizes.tolist() == [[100, 80]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_mangled_exif_tells_no_turn(tmp_path: Path) -> None:
    folder = coco(tmp_path, [], images=[{"id": 1, "file_name": "a.jpg"}])
    Image.new("RGB", (100, 80)).save(folder / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_boxes(folder).sizes.tolist() == [[80, 100]]


def test_two_json_files_need_a_choice(tmp_path: Path) -> None:
    folder = coco(tmp_path, [])
    (folder / "other.json").write_text("{}")
    with pytest.raises(InputError, match=r"2 .json files .*annotations.json, other.json"):
        read_boxes(folder)
    assert len(read_boxes(folder / "annotations.json")) == 2


# Pascal VOC


def test_voc_corners_are_one_based_and_inclusive(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "p.jpg")
    objects = voc_object("dog", 1, 1, 100, 80) + voc_object("cat", "11.5", 21, 31, 41, difficult=1)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    read = read_boxes(voc(tmp_path, "p", objects.replace("</object>", part, 1)))
    np.testing.assert_array_equal(read.boxes[0], [[0, 0, 100, 80], [10.5, 20, 31, 41]])
    assert (read.names, read.ids) == (["cat", "dog"], [0, 1])
    assert read.classes[0].tolist() == [1, 0] and read.crowd[0].tolist() == [False, True]


def test_voc_files_beside_pictures_that_were_renamed(tmp_path: Path) -> None:
    picture(tmp_path / "new.png")
    read = read_boxes(voc(tmp_path, "new", voc_object("x", 1, 1, 5, 5), filename=r"C:\old\IMG_1.JPG", to="."))
    assert read.images[0].file.endswith("new.png") and len(read.boxes[0]) == 1


@pytest.mark.parametrize(
    ("objects", "options", "match"),
    [
        (voc_object("x", 1, 1, "", 5), {}, "object 1: <bndbox><xmax> holds ''"),
        (voc_object("x", 1, 1, "nan", 5), {}, "object 1.*no finite number"),
        ("<object><bndbox/></object>", {}, "object 1 has no name"),
        ("", {"size": (10, 10)}, "'p.jpg' is said to be 10 x 10"),
        ("<object>", {}, "no XML"),
    ],
)
def test_voc_that_is_damaged_is_refused(tmp_path: Path, objects: str, options: dict, match: str) -> None:
    picture(tmp_path / "JPEGImages" / "p.jpg")
    with pytest.raises(InputError, match=match) as raised:
        read_boxes(voc(tmp_path, "p", objects, **options))
    assert "p.xml" in str(raised.value)


def test_voc_without_its_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p.xml: its picture 'p.jpg' is not in"):
        read_boxes(voc(tmp_path, "p", voc_object("x", 1, 1, 5, 5)))


# YOLO


def test_yolo_boxes_are_shares_of_the_picture(tmp_path: Path) -> None:
    read = read_boxes(yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.25\n\n0 0.1 0.1 0.5 0.1 0.5 0.3\n", "b": ""}))
    np.testing.assert_allclose(read.boxes[0], [[40, 30, 60, 50], [10, 8, 50, 24]], rtol=1e-6)
    assert read.classes[0].tolist() == [1, 0] and read.names == ["cat", "dog"]
    assert len(read.boxes[1]) == 0, "a polygon stands for its box, and an empty file for no object"


def test_yolo_pictures_without_a_label_file_have_no_object(tmp_path: Path) -> None:
    folder = yolo(tmp_path, {"a": "0 0.5 0.5 1 1"})
    picture(folder / "images" / "empty.jpg")
    assert [len(boxes) for boxes in read_boxes(folder).boxes] == [1, 0]


@pytest.mark.parametrize(
    ("pictures", "labels", "names", "given"),
    [
        ("train/images", "train/labels", "data.yaml", "train"),  # Roboflow
        ("images/train", "labels/train", "data.yaml", "images/train"),  # Ultralytics
        ("images/train", "labels/train", "data.yaml", "."),
        (".", ".", "classes.txt", "."),  # LabelImg
        ("images", "labels", "labels/classes.txt", "."),
    ],
)
def test_yolo_is_found_in_the_usual_layouts(tmp_path: Path, pictures, labels, names, given) -> None:
    picture(tmp_path / pictures / "a.jpg")
    for path, text in (
        (tmp_path / labels / "a.txt", "1 0.5 0.5 1 1"),
        (tmp_path / names, "cat\ndog\n" if names.endswith("txt") else "names:\n  0: cat\n  1: dog\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    read = read_boxes(tmp_path / given)
    assert read.names == ["cat", "dog"] and read.classes[0].tolist() == [1]


@pytest.mark.parametrize("place", ["images/{}", "{}/images"])
def test_of_a_yolo_root_only_the_training_part_is_read(tmp_path: Path, place: str) -> None:
    for part in ("train", "val", "test"):
        image = picture(tmp_path / place.format(part) / f"{part}_1.jpg")
        label = Path(str(image).replace("images", "labels")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("names: [cat]")
    read = read_boxes(tmp_path)
    assert [Path(image.file).name for image in read.images] == ["train_1.jpg"]
    assert read.dropped == {"files of other splits": 2}
    if "{}" in place:
        assert len(read_boxes(tmp_path / place.format("val"))) == 1


def test_yolo_class_numbers_may_have_gaps(tmp_path: Path) -> None:
    read = read_boxes(yolo(tmp_path, {"a": "9 0.5 0.5 1 1"}, yaml="names: {4: cat, 9: dog}"))
    assert (read.names, read.ids, read.classes[0].tolist()) == (["cat", "dog"], [4, 9], [1])


def test_yolo_keypoints_stand_behind_a_box_and_are_no_polygon(tmp_path: Path) -> None:
    line = "0 0.8 0.75 0.2 0.5" + " 0.1 0.1 2" * 24  # an even number of values, as a polygon has
    read = read_boxes(yolo(tmp_path / "named", {"a": line}, yaml="kpt_shape: [24, 3]\nnames: [dog]\n"))
    np.testing.assert_allclose(read.boxes[0], [[70, 40, 90, 80]], rtol=1e-5)
    with pytest.raises(InputError, match=r"a.txt:1: 5 numbers, where kpt_shape asks for 77"):
        read_boxes(yolo(tmp_path / "short", {"a": "0 0.8 0.75 0.2 0.5"}, yaml="kpt_shape: [24, 3]\nnames: [dog]\n"))
    with pytest.raises(InputError, match=r"a.txt:1: a polygon has a corner outside .* give kpt_shape"):
        read_boxes(yolo(tmp_path / "unnamed", {"a": line}))


def test_yolo_names_are_text_and_keep_their_numbers(tmp_path: Path) -> None:
    for yaml, told in (("names: [no, yes]", "the name False of class 0"), ("names: {0: }", "the name None of class 0")):
        with pytest.raises(InputError, match=rf"data.yaml: {told} is no text; put it in quotes"):
            read_boxes(yolo(tmp_path / "yaml", {"a": ""}, yaml=yaml))
    folder = yolo(tmp_path / "lines", {"a": "2 0.5 0.5 1 1"}, yaml=None)
    (folder / "classes.txt").write_text("cat\n\ndog\n")
    read = read_boxes(folder)
    assert read.names == ["cat", "dog"] and read.ids == [0, 2] and read.classes[0].tolist() == [1]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("2 0.5 0.5 1 1", "a.txt:1: class 2 has no name"),
        ("0 0.5 0.5 1", "a.txt:1: 4 numbers"),
        ("0 0.5 0.5 1 1 0.9", "a.txt:1: 6 numbers"),
        ("0 0.5 nan 1 1", "a.txt:1: .*no finite number"),
        ("0 0.1 0.1 0.5 nan 0.5 0.3", "a.txt:1: .*no finite number"),
        ("cat 0.5 0.5 1 1", "a.txt:1: .*no finite number"),
        ("0 50 40 100 80", "a.txt:1: .*not pixels"),
    ],
)
def test_yolo_that_is_damaged_is_refused(tmp_path: Path, line: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_boxes(yolo(tmp_path, {"a": line}))


def test_yolo_labels_without_a_picture_and_classes_without_names_are_refused(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "orphan", {"a": ""})
    (folder / "labels" / "gone.txt").write_text("")
    with pytest.raises(InputError, match=r"gone.txt: there is no picture"):
        read_boxes(folder)
    folder = yolo(tmp_path / "nameless", {"a": "1 0.5 0.5 1 1"}, yaml=None)
    with pytest.raises(InputError, match="no names of the classes"):
        read_boxes(folder)
    assert read_boxes(folder, ["x", "y"]).names == ["x", "y"]
    folder = yolo(tmp_path / "bad", {"a": ""}, yaml="names: 3")
    with pytest.raises(InputError, match=r"data.yaml: 'names'"):
        read_boxes(folder)


# All of them


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    """One picture with one box, written in each format."""
    coco(tmp_path / "coco", [annotation(0, 7, 5, 10, 20, 30, 40)], images=[{"id": 7, "file_name": "p.jpg"}])
    picture(tmp_path / "voc" / "JPEGImages" / "p.jpg")
    voc(tmp_path / "voc", "p", voc_object("cat", 11, 21, 40, 60))
    yolo(tmp_path / "yolo", {"p": "0 0.25 0.5 0.3 0.5"})
    read = [read_boxes(tmp_path / name, ["cat", "dog"]) for name in ("coco", "voc", "yolo")]
    for each in read:
        np.testing.assert_allclose(each.boxes[0], [[10, 20, 40, 60]], rtol=1e-6)
        assert each.names == ["cat", "dog"] and each.classes[0].tolist() == [0]
    joined = read_boxes([tmp_path / name for name in ("coco", "voc", "yolo")])
    assert len(joined) == 3 and joined.counts() == {"cat": 3, "dog": 0} and joined.ids == [0, 1]


def test_sets_are_joined_by_the_names_of_their_classes(tmp_path: Path) -> None:
    coco(tmp_path / "a", [annotation(0, 7, 5, 0, 0, 5, 5), annotation(1, 7, 90, 0, 0, 5, 5)])
    other = [{"id": 5, "name": "dog"}, {"id": 6, "name": "cow"}]
    coco(tmp_path / "b", [annotation(0, 7, 5, 0, 0, 5, 5), annotation(1, 7, 6, 0, 0, 0, 5)], categories=other)
    read = read_boxes([tmp_path / "a", tmp_path / "b"])
    assert read.names == ["cat", "dog", "cow"] and read.classes[2].tolist() == [1]
    assert read.ids == [0, 1, 2], "the files give dog two ids"
    assert read.dropped == {"boxes without area": 1}


def test_known_names_order_the_classes_and_admit_no_others(tmp_path: Path) -> None:
    folder = coco(tmp_path, [annotation(0, 7, 5, 0, 0, 5, 5)])
    read = read_boxes(folder, ["bird", "dog", "cat"])
    assert (read.names, read.classes[0].tolist()) == (["bird", "dog", "cat"], [2])
    with pytest.raises(InputError, match=r"annotation 0: class 'cat' is not among .*did you mean 'cats'"):
        read_boxes(folder, ["cats", "dog"])
    assert read_boxes(folder, ["cat"]).names == ["cat"], "a listed class without a box is not missed"


def test_what_holds_no_boxes_says_what_is_wanted(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    for path in (tmp_path, tmp_path / "gone", tmp_path / "a.jpg"):
        with pytest.raises(InputError, match=r"give a COCO .json file"):
            read_boxes(path)
    with pytest.raises(InputError, match="no path"):
        read_boxes([])


@given(st.integers(2, 40), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_split_parts_the_pictures(n: int, fraction: float, seed: int) -> None:
    whole = BoxedImages(
        [ImageRef(str(i), str(i)) for i in range(n)],
        np.arange(2 * n).reshape(n, 2),
        [np.full((1, 4), i, np.float32) for i in range(n)],
        [np.zeros(1, np.int64)] * n,
        [np.zeros(1, bool)] * n,
        *(["x"], [0], {}, 0),
    )
    if not 0 < round(fraction * n) < n:
        with pytest.raises(InputError, match="leaves one part empty"):
            whole.split(fraction, seed)
        return
    rest, held = whole.split(fraction, seed)
    assert len(held) == round(fraction * n)
    names = [image.file for image in rest.images + held.images]
    assert sorted(names, key=int) == [image.file for image in whole.images]
    for part in (rest, held):
        assert [int(boxes[0, 0]) for boxes in part.boxes] == [int(image.file) for image in part.images]
        assert (part.sizes[:, 0] // 2).tolist() == [int(image.file) for image in part.images]


@pytest.mark.skipif(not BCCD.exists(), reason="the shared data is not here")
def test_blood_cells() -> None:
    train, val = read_boxes(BCCD / "train"), read_boxes(BCCD / "val")
    assert (len(train), len(val), val.names, val.ids) == (205, 87, ["Platelets", "RBC", "WBC"], [1, 2, 3])
    assert sum(map(len, val.boxes)) + val.dropped["boxes without area"] == 1138


def test_yolo_files_that_begin_like_splits_are_pictures_like_others(tmp_path: Path) -> None:
    for stem in ("train_1", "test_track", "street"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{stem}.png")
        (tmp_path / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("car\n")
    assert len(read_boxes(tmp_path)) == 3 and not read_boxes(tmp_path).dropped
