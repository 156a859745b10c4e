import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bedplate.data import pixel_store
from bedplate.data.image_files import LabelledImages, read_images
from bedplate.data.image_loader import Batch, ImageEvalLoader, ImageLoader, PixelStore
from bedplate.data.images import BadImage, fit, to_pixels
from bedplate.data.loader import prefetch
from bedplate.errors import InputError

from .pictures import encoded, killed, noise

SIZE = (8, 10)
COUNT = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 JPEGs of several shapes in 3 classes."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT):
        path = root / "abc"[i % 3] / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(12 + i, 40 - i, i), "JPEG"))
    return root


@pytest.fixture(scope="module")
def images(folder: Path) -> LabelledImages:
    return read_images(folder)


@pytest.fixture
def few_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_store, "CHUNK", 7)


def equal(one: Batch, other: Batch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_batches_among_some_pictures_hold_these_alone(images: LabelledImages, tmp_path: Path) -> None:
    store, some = PixelStore(images, SIZE, "cover", tmp_path, 1), np.array([21, 4, 8, 11])
    loader = ImageLoader(images, 3, 5, store, among=some)
    assert loader.steps_per_epoch == 2 and loader.epoch(4) == 3
    seen = torch.cat([loader.batch(step)["index"] for step in range(4)]).view(3, 4)
    assert all(sorted(epoch.tolist()) == [4, 8, 11, 21] for epoch in seen) and not torch.equal(seen[0], seen[1])
    batch = loader.batch(1)
    assert np.array_equal(batch["pixels"].numpy(), store.pixels(batch["index"].numpy()))
    targets = images.targets
    assert targets is not None and batch["labels"].tolist() == targets[batch["index"].numpy()].tolist()


@pytest.mark.parametrize("mode", ["cover", "letterbox", "stretch"])
@pytest.mark.usefixtures("few_a_chunk")
def test_stored_or_not_and_by_any_number_of_workers_pixels_are_the_same(
    images: LabelledImages, mode: str, tmp_path: Path
) -> None:
    expected = np.stack([to_pixels(fit(ref.image(at_least=SIZE), *SIZE, mode)) for ref in images.images])
    index = np.array([29, 3, 3, 0, 17])
    for workers in (1, 2) if mode == "cover" else (1,):
        for limit in (10**9, 0):
            store = PixelStore(images, SIZE, mode, tmp_path / f"{workers} {limit}", workers, limit)
            assert store.stored == bool(limit) and len(store) == COUNT and store.broken == []
            pixels = store.pixels(index)
            assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected[index])
            store.close()


def test_pictures_are_decoded_once(images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (10**9, 0):
        PixelStore(images, SIZE, "cover", tmp_path, 1, limit)
    calls: list[int] = []
    decode_all = pixel_store.decode_all

    def counted(*arguments: object) -> object:
        calls.append(1)
        return decode_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pixel_store, "decode_all", counted)
    for limit in (10**9, 0):
        PixelStore(images, SIZE, "cover", tmp_path, 1, limit)
    unlabelled = LabelledImages(images.images, None, [], {})
    assert PixelStore(unlabelled, SIZE, "cover", tmp_path, 1).fingerprint
    assert calls == []
    PixelStore(images, SIZE, "stretch", tmp_path, 1)
    PixelStore(images, (8, 8), "cover", tmp_path, 1)
    PixelStore(images.select(range(9)), SIZE, "cover", tmp_path, 1)
    assert len(calls) == 3
    assert not list(tmp_path.rglob("*.part"))


def test_an_interrupted_build_leaves_nothing(
    images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pixel_store, "_fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            PixelStore(images, SIZE, "cover", tmp_path, 1)
    assert not list((tmp_path / "pixels").iterdir())
    assert PixelStore(images, SIZE, "cover", tmp_path, 1).pixels(np.array([0])).any()


@pytest.fixture(scope="module")
def store(images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> PixelStore:
    return PixelStore(images, SIZE, "cover", tmp_path_factory.mktemp("cache"), 1)


@given(st.integers(1, 70), st.integers(0, 2**40), st.integers(0, 5))
def test_every_picture_comes_once_an_epoch(
    images: LabelledImages, store: PixelStore, batch_size: int, seed: int, epoch: int
) -> None:
    loader = ImageLoader(images, batch_size, seed, store)
    assert loader.steps_per_epoch == -(-COUNT // batch_size)
    first, last = epoch * COUNT // batch_size, -(-(epoch + 1) * COUNT // batch_size)
    drawn = torch.cat([loader.batch(step)["index"] for step in range(first, last)]).tolist()
    start = epoch * COUNT - first * batch_size
    assert sorted(drawn[start : start + COUNT]) == list(range(COUNT))
    assert loader.epoch(first) == first * batch_size / COUNT


def test_batches_hold_what_their_index_says(images: LabelledImages, store: PixelStore) -> None:
    batch = ImageLoader(images, 16, 5, store).batch(3)
    assert batch["pixels"].shape == (16, 3, *SIZE) and batch["pixels"].dtype == torch.uint8
    assert batch["labels"].dtype == batch["index"].dtype == torch.int64
    index = batch["index"].numpy()
    assert np.array_equal(batch["pixels"].numpy(), store.pixels(index))
    assert batch["labels"].tolist() == [images.classes.index(images.labels[i]) for i in index]  # type: ignore[index]
    unlabelled = LabelledImages(images.images, None, [], {})
    assert ImageLoader(unlabelled, 16, 5, store).batch(3).keys() == {"pixels", "index"}


def test_epochs_and_seeds_have_orders_of_their_own(images: LabelledImages, store: PixelStore) -> None:
    orders = [ImageLoader(images, COUNT, seed, store).batch(step)["index"] for seed in (0, 1) for step in (0, 1)]
    assert all(not torch.equal(one, other) for one in orders for other in orders if one is not other)


@pytest.mark.usefixtures("few_a_chunk")
def test_resuming_is_exact_whatever_the_workers(
    images: LabelledImages, store: PixelStore, folder: Path, tmp_path: Path
) -> None:
    whole = [ImageLoader(images, 8, 1, store).batch(step) for step in range(9)]
    again = read_images(folder)
    for workers, limit in ((1, 0), (2, 0), (2, 10**9)):
        other = PixelStore(again, SIZE, "cover", tmp_path / f"{workers} {limit}", workers, limit)
        batches = list(prefetch(ImageLoader(again, 8, 1, other), 4, 9))
        assert len(batches) == 5 and all(equal(*pair) for pair in zip(batches, whole[4:], strict=True))
        assert other.fingerprint == store.fingerprint
        other.close()


def test_ranks_share_a_batch(images: LabelledImages, store: PixelStore) -> None:
    whole = ImageLoader(images, 12, 1, store).batch(2)
    parts = [ImageLoader(images, 12, 1, store, rank, 3).batch(2) for rank in range(3)]
    assert equal({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)
    with pytest.raises(InputError, match=r"train\.batch_size 12 is not a multiple of 5 processes"):
        ImageLoader(images, 12, 1, store, 0, 5)


def test_evaluation_sees_all_once_in_order(images: LabelledImages, store: PixelStore) -> None:
    loader = ImageEvalLoader(images, 8, store)
    batches = list(loader)
    assert len(loader) == len(batches) == 4 and [len(batch["pixels"]) for batch in batches] == [8, 8, 8, 6]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(COUNT))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == images.targets.tolist()  # type: ignore[union-attr]
    assert len(list(ImageEvalLoader(images, 8, store, max_batches=2))) == 2


def test_ranks_share_an_evaluation(images: LabelledImages, store: PixelStore) -> None:
    loaders = [ImageEvalLoader(images, 8, store, None, rank, 3) for rank in range(3)]  # of 4 batches
    batches = [[batch["index"].tolist() for batch in loader] for loader in loaders]
    assert [len(loader) for loader in loaders] == [2, 2, 2]
    in_order = [number for nth in zip(*batches, strict=True) for batch in nth for number in batch]
    assert in_order == [*range(COUNT), *range(24, COUNT), *range(24, COUNT)]  # the last batch fills up
    assert all(loader.index.tolist() == list(range(COUNT)) for loader in loaders)


@pytest.mark.parametrize("limit", [10**9, 0])
def test_broken_pictures_are_named_and_never_drawn(images: LabelledImages, tmp_path: Path, limit: int) -> None:
    for i, ref in enumerate(images.images):
        data = Path(ref.file).read_bytes()
        path = tmp_path / "x" / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data[: len(data) // 2] if i == 4 else b"" if i == 17 else data)
    data = read_images(tmp_path / "x")
    for _ in range(2):  # found, then remembered
        store = PixelStore(data, SIZE, "cover", tmp_path, 1, limit)
        assert (
            len(store.broken) == 2 and "04.jpg: truncated" in store.broken[0] and "17.jpg: an empty" in store.broken[1]
        )
    assert store.usable.tolist() == [i for i in range(COUNT) if i not in (4, 17)]
    drawn = [ImageLoader(data, 7, 0, store).batch(step)["index"] for step in range(8)]  # two epochs
    assert sorted(torch.cat(drawn).tolist()) == sorted(2 * store.usable.tolist())
    seen = torch.cat([batch["index"] for batch in ImageEvalLoader(data, 7, store)])
    assert seen.tolist() == store.usable.tolist()


def test_too_many_broken_pictures_are_an_error(images: LabelledImages, tmp_path: Path) -> None:
    for i in range(10):
        path = tmp_path / "x" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"broken" if i < 2 else Path(images.images[i].file).read_bytes())
    data = read_images(tmp_path / "x")
    with pytest.raises(InputError, match=r"2 of 10 pictures cannot be decoded, .* the first: .*0\.jpg: no picture"):
        PixelStore(data, SIZE, "cover", tmp_path, 1)
    assert PixelStore(data.select([1, 2]), SIZE, "cover", tmp_path, 1).usable.tolist() == [1], "a single one may be"
    with pytest.raises(InputError, match="1 of 1 pictures cannot be decoded"):
        PixelStore(data.select([1]), SIZE, "cover", tmp_path, 1)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [("npy", 0.5), ("npy", 0.0), ("npy", b"\0" * 9000), ("json", 0.5), ("json", b"[[99, 1]]"), ("json", b"null")],
)
def test_a_damaged_cache_is_made_anew(
    images: LabelledImages, store: PixelStore, tmp_path: Path, suffix: str, damage: float | bytes
) -> None:
    PixelStore(images, SIZE, "cover", tmp_path, 1)
    (file,) = (tmp_path / "pixels").glob(f"*.{suffix}")
    whole = file.read_bytes()
    file.write_bytes(damage if isinstance(damage, bytes) else whole[: int(damage * len(whole))])
    again = PixelStore(images, SIZE, "cover", tmp_path, 1)
    assert file.read_bytes() == whole and np.array_equal(again.pixels(np.arange(COUNT)), store.pixels(np.arange(COUNT)))


def test_decoded_pictures_are_on_the_disk_before_they_have_their_name(
    images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_disk(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(pixel_store.os, "fsync", no_disk)
    with pytest.raises(InputError, match=r"pixels: cannot be made or written to \(broken disk\); give another"):
        PixelStore(images, SIZE, "cover", tmp_path, 1)
    assert not list((tmp_path / "pixels").glob("*.npy"))


def test_a_cache_that_cannot_be_made_is_told(images: LabelledImages, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for limit in (10**9, 0):
        with pytest.raises(InputError, match=r"file/pixels: cannot be made or written to \(.*data\.cache"):
            PixelStore(images, SIZE, "cover", tmp_path / "file", 1, limit)


@pytest.mark.usefixtures("few_a_chunk")
def test_a_killed_worker_is_told(images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PixelStore(images, SIZE, "cover", tmp_path / "not kept", 1, 0)
    store._workers = 2
    monkeypatch.setattr(pixel_store, "decode_all", killed)
    monkeypatch.setattr(pixel_store, "_fill", killed)
    for work in (lambda: PixelStore(images, SIZE, "cover", tmp_path, 2), lambda: store.pixels(np.arange(4))):
        with pytest.raises(InputError, match=r"a worker process was killed \(out of memory\?\); give the same command"):
            work()
    assert not list(tmp_path.rglob("*.part"))
    store.close()


def test_a_picture_lost_in_training_is_an_error(images: LabelledImages, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(Path(images.images[i].file).read_bytes())
    store = PixelStore(read_images(tmp_path), SIZE, "cover", tmp_path / "cache", 1, 0)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(BadImage, match=r"1\.jpg: cannot be read"):
        store.pixels(np.array([0, 1]))


def test_bad_settings(images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size, mode, workers, said in [
        ((0, 8), "cover", 1, "give sides of 1 or more"),
        ((8, 8), "squash", 1, "one of cover, crop, letterbox, stretch"),
        ((8, 8), "cover", 0, "workers 0 is not a number of processes"),
    ]:
        with pytest.raises(InputError, match=said):
            PixelStore(images, size, mode, tmp_path, workers)
    monkeypatch.setattr(pixel_store.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match="7,200 bytes are needed for decoded pictures, 10 are free; free space"):
        PixelStore(images, SIZE, "cover", tmp_path, 1)
