from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bedplate.data.box_loader import BoxEvalLoader, BoxLoader, box_store, fingerprint, from_canvas, to_canvas
from bedplate.data.boxes import BoxedImages
from bedplate.data.image_refs import ImageRef
from bedplate.errors import InputError

CANVAS = (48, 64)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> BoxedImages:
    """Seven grey pictures of several shapes; picture i has i - 1 white boxes, the first of picture 3 a crowd."""
    folder, generator = tmp_path_factory.mktemp("boxed"), np.random.default_rng(0)
    images, sizes, boxes, classes, crowd = [], [], [], [], []
    for i in range(7):
        height, width = int(generator.integers(40, 200)), int(generator.integers(40, 200))
        pixels = np.full((height, width, 3), 90, np.uint8)
        corners = generator.integers(0, [width // 2, height // 2], (max(i - 1, 0), 2))
        ends = corners + generator.integers(12, [width // 2, height // 2], corners.shape)
        for (x1, y1), (x2, y2) in zip(corners, ends, strict=True):
            pixels[y1:y2, x1:x2] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append(ImageRef(f"{i}.png", str(folder / f"{i}.png")))
        sizes.append((height, width))
        boxes.append(np.concatenate([corners, ends], 1).astype(np.float32))
        classes.append(np.arange(len(corners)) % 2)
        crowd.append(np.array([i == 3 and j == 0 for j in range(len(corners))], bool))
    return BoxedImages(images, np.array(sizes), boxes, classes, crowd, ["a", "b"], [1, 2], {}, 0)


@pytest.fixture
def store(boxed: BoxedImages, tmp_path: Path):
    return box_store(boxed, CANVAS, tmp_path, workers=1)


def loader(boxed: BoxedImages, store, batch_size: int = 4, seed: int = 0, **options) -> BoxLoader:
    return BoxLoader(boxed, CANVAS, batch_size, seed, store, **options)


def test_batches_have_the_shapes_of_the_contract(boxed: BoxedImages, store) -> None:
    batch = loader(boxed, store).batch(0)
    most = batch["boxes"].shape[1]
    assert batch["pixels"].shape == (4, 3, *CANVAS) and batch["pixels"].dtype == torch.uint8
    assert batch["boxes"].shape == (4, most, 4) and batch["boxes"].dtype == torch.float32
    assert batch["classes"].shape == (4, most) and batch["classes"].dtype == torch.int64
    assert batch["index"].shape == (4,)
    for classes, boxes, i in zip(batch["classes"], batch["boxes"], batch["index"].tolist(), strict=True):
        kept = ~boxed.crowd[i]
        assert classes[classes >= 0].tolist() == boxed.classes[i][kept].tolist(), "crowds are not learnt from"
        assert (boxes[classes < 0] == 0).all() and (classes[: kept.sum()] >= 0).all()


def test_boxes_lie_on_what_they_enclose(boxed: BoxedImages, store) -> None:
    """The pixels inside of the box of picture 2, its only object, are white, and those well outside are not."""
    (batch,) = BoxEvalLoader(boxed.select([2]), CANVAS, 4, box_store_of(store, 2))
    x1, y1, x2, y2 = batch["boxes"][0, 0].tolist()
    pixels = batch["pixels"][0, 0].numpy()
    rows, columns = np.nonzero(pixels > 172)  # nearer to white than to grey
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], [x1, y1, x2, y2], atol=1.01
    )


def box_store_of(store, number: int):
    class One:
        usable = np.array([0])

        def __len__(self) -> int:
            return 1

        def pixels(self, index):
            return store.pixels(index + number)

    return One()


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4),
)
def test_boxes_go_to_the_canvas_and_back(size, canvas, shares) -> None:
    height, width = size
    boxes = np.array(shares).reshape(-1, 4) * [width, height, width, height]
    there = to_canvas(boxes, size, canvas)
    assert (there <= np.array([canvas[1], canvas[0]] * 2) + 1e-3).all()
    np.testing.assert_allclose(from_canvas(there, size, canvas), boxes, atol=1e-3)
    outside = from_canvas([[-5, -5, 1e4, 1e4]], size, canvas)
    np.testing.assert_allclose(outside, [[0, 0, width, height]])


def test_an_epoch_has_every_picture_once_and_epochs_differ(boxed: BoxedImages, store) -> None:
    seven = loader(boxed, store, batch_size=7)
    epochs = [seven.batch(step)["index"].tolist() for step in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and len(set(map(tuple, epochs))) > 1
    assert seven.steps_per_epoch == 1 and seven.epoch(3) == 3


def test_a_batch_depends_on_seed_and_step_alone(boxed: BoxedImages, store) -> None:
    first, again, other = loader(boxed, store), loader(boxed, store), loader(boxed, store, seed=1)
    wanted = [first.batch(step) for step in range(3)]
    for step in (2, 0, 1):
        batch = again.batch(step)
        assert all(torch.equal(batch[name], wanted[step][name]) for name in batch)
    assert any(other.batch(step)["index"].tolist() != wanted[step]["index"].tolist() for step in range(3))


def test_ranks_share_a_batch(boxed: BoxedImages, store) -> None:
    whole = loader(boxed, store).batch(1)["index"].tolist()
    parts = [loader(boxed, store, rank=rank, world_size=2).batch(1)["index"].tolist() for rank in (0, 1)]
    assert parts[0] + parts[1] == whole
    with pytest.raises(InputError, match="not a multiple of 3"):
        loader(boxed, store, world_size=3)


def test_evaluation_reads_all_in_order(boxed: BoxedImages, store) -> None:
    batches = list(BoxEvalLoader(boxed, CANVAS, 3, store))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(BoxEvalLoader(boxed, CANVAS, 3, store)) == 3
    assert len(list(BoxEvalLoader(boxed, CANVAS, 3, store, max_batches=1))) == 1
    assert batches[2]["classes"].shape == (1, 5)
    shared = [list(BoxEvalLoader(boxed, CANVAS, 3, store, None, rank, 2)) for rank in (0, 1)]
    found = [[batch["index"].tolist() for batch in batches] for batches in shared]
    assert found == [[[0, 1, 2], [6]], [[3, 4, 5], [6]]]  # the last one fills up


def test_nothing_to_learn_from_is_refused(boxed: BoxedImages, store, tmp_path: Path) -> None:
    empty = boxed.select([0, 1])
    with pytest.raises(InputError, match="no box to learn from"):
        BoxLoader(empty, CANVAS, 2, 0, box_store(empty, CANVAS, tmp_path, workers=1))


def test_other_boxes_have_another_fingerprint(boxed: BoxedImages, store) -> None:
    import dataclasses

    moved = dataclasses.replace(boxed, boxes=[boxes + 1 for boxes in boxed.boxes])
    assert fingerprint(boxed, store) == fingerprint(boxed, store) != fingerprint(moved, store)
