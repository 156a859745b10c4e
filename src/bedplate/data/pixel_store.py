"""Pictures decoded once to one size and mapped from a file, or decoded anew by processes where they are too many.

    ImageRef.read ─► decode ─► fit ─► uint8 (3, H, W) ─► pixels-KEY.npy (N, 3, H, W)

No torch here: the processes that decode must start fast.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import numpy as np
import PIL
from numpy.typing import NDArray

from bedplate.data.cores import available_cores, telling_killed_workers
from bedplate.data.image_files import hash_pictures
from bedplate.data.image_refs import ImageRef, Pictures, telling_unwritable
from bedplate.data.images import FITS, BadImage, fit, to_pixels
from bedplate.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
Pixels = NDArray[np.uint8]
Broken = list[tuple[int, str]]
"""(number of the picture, what is wrong with it)"""

FORMAT = 1
"""Of what is kept: raised when the same pictures would give other pixels."""
LIMIT_BYTES = 4_000_000_000
"""Pixels up to which all are kept decoded."""
CHUNK = 256
"""Pictures that a process decodes at a time."""
MOST_BROKEN = 0.1
"""Share of the pictures; a single one may always be, if others are left."""


class PixelStore:
    """The pixels of all pictures at one size.

    Where N x 3 x H x W bytes are within `limit`, all pictures are decoded once into a file in `cache_dir`, named by
    their contents, size and mode, and mapped from there in later runs too. Else they are looked through once, which is
    remembered, and decoded whenever they are asked for. Both give the same pixels.

    Args:
        images: The pictures.
        size: (H, W).
        mode: How they are brought to it, see `images.fit`.
        cache_dir: Folder for what is kept.
        workers: Processes that decode; 1 stays in this one; None takes the cores that this process may use. With more
            than one, a script must call this under `if __name__ == "__main__":`.
        limit: Bytes up to which decoded pictures are kept.

    Attributes:
        broken: What is wrong with each picture that cannot be decoded, named.
        usable: Numbers of all others (n,) int64, ascending.
        stored: Whether the pictures are kept decoded.

    Raises:
        InputError: All pictures are broken, or more than one and more than a tenth; no space on the disk, or a folder
            that cannot be written to; a worker was killed; or a size or mode that is none.
    """

    def __init__(
        self,
        images: Pictures,
        size: tuple[int, int],
        mode: str,
        cache_dir: str | Path,
        workers: int | None = None,
        limit: int = LIMIT_BYTES,
    ) -> None:
        if mode not in FITS or min(size) < 1:
            raise InputError(f"size {size}, fit '{mode}': give sides of 1 or more, and one of {', '.join(FITS)}")
        self._refs, self._size, self._mode = images.images, size, mode
        self._workers = _checked(workers)
        self._pool: Executor | None = None
        self.fingerprint = images.fingerprint(cache_dir)
        """Hash of the pictures and of what is known of them, for resuming."""
        self.stored = len(images) * 3 * size[0] * size[1] <= limit
        key = hashlib.blake2b(digest_size=16)
        contents = hash_pictures(images.images, [""] * len(images), "[]", cache_dir)
        key.update(repr((FORMAT, PIL.__version__, contents, size, mode)).encode())
        self._file = Path(cache_dir) / "pixels" / f"{key.hexdigest()}.npy"
        self._shape = (len(images), 3, *size)
        self._array = self._kept() if self.stored else None
        broken = self._known() if self._array is not None or not self.stored else None
        if broken is None:
            broken = self._build()
            self._array = self._kept() if self.stored else None
        self._check(broken)
        self.broken = [complaint for _, complaint in broken]
        self.usable = np.delete(np.arange(len(images), dtype=np.int64), [number for number, _ in broken])

    def __len__(self) -> int:
        """Count the pictures, broken ones too."""
        return len(self._refs)

    def pixels(self, index: NDArray[np.int64]) -> Pixels:
        """The pixels (n, 3, H, W) of pictures by their numbers (n,); broken ones are black.

        Raises:
            BadImage: A picture has been lost or damaged since it was looked through.
            InputError: A worker was killed.
        """
        if self._array is not None:
            return self._array[index]
        pool = self._processes()
        parts = np.array_split(index, self._workers if pool else 1)
        with telling_killed_workers():
            results = [
                _submit(pool, decode_all, [self._refs[i] for i in part], self._size, self._mode)
                for part in parts
                if len(part)
            ]
            pixels, broken = zip(*(result.result() for result in results), strict=True)
        lost = [complaint for each in broken for _, complaint in each]
        if lost and np.isin(index, self.usable).all():
            raise BadImage(lost[0])
        return np.concatenate(pixels)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _processes(self) -> Executor | None:
        if self._workers > 1 and self._pool is None:
            self._pool = _pool(self._workers)
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool

    def _kept(self) -> Pixels | None:
        """The pixels as an earlier run has decoded them; None where there are none, or a damaged file."""
        try:
            with telling_unwritable(self._file.parent):
                array = np.load(self._file, mmap_mode="r") if self._file.is_file() else None
        except (EOFError, ValueError, SyntaxError):
            return None
        return array if array is not None and array.shape == self._shape and array.dtype == np.uint8 else None

    def _known(self) -> Broken | None:
        """The broken pictures as an earlier run has found them; None where there are none, or a damaged file."""
        try:
            notes = json.loads(self._notes().read_text("utf-8"))
            return [(number, f"{self._refs[number].where}{said}") for number, said in notes]
        except (OSError, ValueError, TypeError, IndexError):
            return None

    def _notes(self) -> Path:
        return self._file.with_suffix(".json")

    def _build(self) -> Broken:
        """Decode all pictures once, into the file where they are to be kept."""
        folder = self._file.parent
        part = folder / f"{self._file.stem}.{os.getpid()}.part"
        with telling_unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.stored:
                free, needed = shutil.disk_usage(folder).free, np.prod(self._shape)
                if free < needed:  # a mapped file that outgrows the disk would kill the process
                    raise InputError(
                        f"{folder}: {needed:,} bytes are needed for decoded pictures, {free:,} are free; "
                        f"free space, or set BEDPLATE_CACHE"
                    )
                with telling_unwritable(folder):
                    np.lib.format.open_memmap(part, "w+", np.uint8, self._shape).flush()
            broken = self._decode_to(str(part) if self.stored else None)
            self._check(broken)
            notes = [(number, said.removeprefix(self._refs[number].where)) for number, said in broken]
            written = part.with_suffix(".json")
            with telling_unwritable(folder):
                written.write_text(json.dumps(notes), "utf-8")
                _move(written, self._notes())
                if self.stored:
                    _move(part, self._file)
        finally:
            _mapped.cache_clear()  # a later build has a part of the same name
            for left in (part, part.with_suffix(".json")):
                left.unlink(missing_ok=True)
        return broken

    def _decode_to(self, file: str | None) -> Broken:
        starts = range(0, len(self._refs), CHUNK)
        with telling_killed_workers(), _lent(min(self._workers, len(starts))) as pool:
            jobs = [
                _submit(pool, _fill, file, start, self._refs[start : start + CHUNK], self._size, self._mode)
                for start in starts
            ]
            return [each for job in jobs for each in job.result()]

    def _check(self, broken: Broken) -> None:
        most = min(max(1, MOST_BROKEN * len(self._refs)), len(self._refs) - 1)
        if broken and len(broken) > most:
            raise InputError(
                f"{len(broken)} of {len(self._refs)} pictures cannot be decoded, more than a tenth; the first: "
                f"{broken[0][1]}"
            )


def decode_all(refs: Sequence[ImageRef], size: tuple[int, int], mode: str) -> tuple[Pixels, Broken]:
    """Read, decode and fit pictures: uint8 (n, 3, H, W), black where one is broken, and which these are."""
    out = np.zeros((len(refs), 3, *size), np.uint8)
    broken = []
    for number, ref in enumerate(refs):
        try:
            out[number] = to_pixels(fit(ref.image(at_least=size), *size, mode))
        except BadImage as error:
            broken.append((number, str(error)))
    return out, broken


def _fill(file: str | None, start: int, refs: Sequence[ImageRef], size: tuple[int, int], mode: str) -> Broken:
    """Decode one chunk into its place in the file, if there is one."""
    pixels, broken = decode_all(refs, size, mode)
    if file is not None:
        _mapped(file)[start : start + len(refs)] = pixels
    return [(start + number, said) for number, said in broken]


@lru_cache(maxsize=1)
def _mapped(file: str) -> Pixels:
    return cast(Pixels, np.load(file, mmap_mode="r+"))


def _move(file: Path, target: Path) -> None:
    """Give a file its final name once it is on the disk: after a loss of power it is there in full or not at all."""
    with open(file, "r+b") as written:
        os.fsync(written.fileno())
    file.replace(target)


def _checked(workers: int | None) -> int:
    inside = multiprocessing.parent_process() is not None
    if workers is None:
        return 1 if inside else available_cores()
    if workers < 1:
        raise InputError(f"workers {workers} is not a number of processes: give 1 or more")
    if workers > 1 and inside:
        raise InputError("workers > 1 in a script: put the call under `if __name__ == '__main__':`, or use workers=1")
    return workers


def _pool(workers: int) -> Executor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


@contextmanager
def _lent(workers: int) -> Iterator[Executor | None]:
    """Processes for one job; None where this process does it."""
    if workers <= 1:
        yield None
        return
    with _pool(workers) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _submit(pool: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """The future result of some work; where there is no pool it is done at once."""
    if pool is not None:
        return pool.submit(work, *args, **kwargs)
    done: Future[T] = Future()
    done.set_result(work(*args, **kwargs))
    return done
