"""Handles of pictures: small, picklable, read where and when they are needed."""

import gzip
import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bedplate.data.formats import telling_damage
from bedplate.data.images import BadImage, decode
from bedplate.data.remote import mirror
from bedplate.errors import InputError

IDX_UBYTE = 8


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one picture is.

    Attributes:
        where: What errors call it: "file", "file:row", "archive::member".
        file: The file that holds it.
        kind: The file itself; a "span" of its bytes; a row of a "parquet" or "idx" file.
        place: Offset of a span, else the row, counted from 0.
        size: Bytes of a span.
        column: Of a parquet file.
    """

    where: str
    file: str
    kind: Literal["file", "span", "parquet", "idx"] = "file"
    place: int = 0
    size: int = 0
    column: str = ""

    def read(self) -> bytes | NDArray[np.uint8]:
        """The bytes of the picture's file, or the greys (H, W) of an IDX row.

        Raises:
            BadImage: They are not there or cannot be read.
        """
        try:
            if self.kind == "file":
                return Path(self.file).read_bytes()
            if self.kind == "span":
                return _read_span(_opened(self.file), self.place, self.size)
            if self.kind == "idx":
                return cast(NDArray[np.uint8], idx_array(self.file)[self.place])
            value = _parquet(self.file, self.column).value(self.place)
        except OSError as error:
            raise BadImage(f"{self.where}: cannot be read: {error.strerror or error}; check the path") from error
        if isinstance(value, str):
            return ImageRef(self.where, beside(self.file, value)).read()
        if not isinstance(value, bytes):
            raise BadImage(f"{self.where}: '{self.column}' holds no picture; mend the row or leave it out")
        return value

    def image(self, at_least: tuple[int, int] | None = None) -> Image.Image:
        """The picture as `images.decode` gives it."""
        return decode(self.read(), self.where, at_least)

    def digest(self) -> bytes:
        """16 bytes that are equal where the contents are."""
        content = self.read()
        if isinstance(content, bytes):
            return hashlib.blake2b(content, digest_size=16).digest()
        return hashlib.blake2b(f"{content.shape}".encode() + content.tobytes(), digest_size=16).digest()


class Pictures(Protocol):
    """Pictures, whatever is known of them: labels, texts, or nothing."""

    @property
    def images(self) -> list[ImageRef]: ...

    def __len__(self) -> int: ...

    def fingerprint(self, cache_dir: str | Path) -> str: ...


def beside(file: str, path: str) -> str:
    """`path` as a row of `file` means it: from the folder of the file, where it is not absolute."""
    return str(Path(file).parent / Path(path).expanduser())


@contextmanager
def telling_unwritable(folder: Path) -> Iterator[None]:
    """Turn what writing to a cache folder raises into an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made or written to ({error.strerror}); give another cache folder (data.cache), or "
            f"set BEDPLATE_CACHE"
        ) from error


class Spool:
    """Keeps pictures that cannot be read at random where they are (Hub, URLs, compressed archives) in one file here.

    The file lies in the cache and is named by its content, so that the same data is kept once.
    """

    def __init__(self, source: str) -> None:
        self._folder = mirror(source)
        self._spans: list[tuple[str, int, int]] = []

    def __enter__(self) -> Self:
        with telling_unwritable(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False)
        self._hash = hashlib.blake2b(digest_size=16)
        self._end = 0
        return self

    def add(self, content: bytes, where: str) -> int:
        """Write one picture; returns its number."""
        self._file.write(content)
        self._hash.update(content)
        self._spans.append((where, self._end, len(content)))
        self._end += len(content)
        return len(self._spans) - 1

    def close(self) -> list[ImageRef]:
        """Finish the file; the handles of its pictures in the order of `add`."""
        self._file.close()
        path = self._folder / f"{self._hash.hexdigest()}.pictures"
        os.replace(self._file.name, path)
        return [ImageRef(where, str(path), "span", start, size) for where, start, size in self._spans]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


def forget_files() -> None:
    """Close what reading keeps open: files may have changed since."""
    for kept in (_opened, idx_array, _parquet, _groups):
        kept.cache_clear()


@lru_cache(maxsize=16)
def _opened(file: str) -> BinaryIO:
    return open(file, "rb")  # closed when the cache forgets it


def _read_span(file: BinaryIO, offset: int, size: int) -> bytes:
    with _reading:  # one file, one place in it
        file.seek(offset)
        return file.read(size)


_reading = threading.RLock()


@lru_cache(maxsize=4)
def idx_array(file: str) -> NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes (LeCun's MNIST format), mapped, or in memory where it is gzipped.

    Raises:
        InputError: It is not what its header says.
    """
    with telling_damage(file):
        if file.endswith(".gz"):
            with gzip.open(file) as stream:
                data = np.frombuffer(stream.read(), np.uint8)
        else:
            data = np.memmap(file, np.uint8, "r") if os.path.getsize(file) else np.empty(0, np.uint8)
    dimensions = int(data[3]) if len(data) > 3 else 0
    start = 4 + 4 * dimensions
    shape = tuple(int(side) for side in np.frombuffer(data[4:start].tobytes(), ">u4")) if len(data) >= start else ()
    kind_ok = len(data) > 3 and not data[:2].any() and data[2] == IDX_UBYTE
    if not (kind_ok and shape and int(np.prod(shape)) == len(data) - start):
        raise InputError(f"{file}: no IDX file of unsigned bytes, or not whole; fetch or write it again")
    return data[start:].reshape(shape)


class _Parquet:
    """One column of a parquet file, read by row groups; `_groups` keeps those of all files that were read last."""

    def __init__(self, file: str, column: str) -> None:
        import pyarrow.parquet as pq

        self._column = column
        with telling_damage(file):
            self._file = pq.ParquetFile(file, memory_map=True)
        counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends = np.cumsum(counts)
        self._name = file

    def value(self, row: int) -> bytes | str | None:
        """The bytes that the row holds, else the path."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        with _reading:  # a ParquetFile is for one thread at a time
            columns = _groups.get((self._name, self._column, number), partial(self._read, number))
        values = (column[row - first].as_py() for column in columns)
        return next((value for value in values if value), None)

    def _read(self, number: int) -> list[Any]:
        """The columns of a row group that may hold a picture: the column, or the two of the Hub's struct."""
        import pyarrow as pa
        import pyarrow.compute as pc

        with telling_damage(self._name):
            whole = self._file.read_row_group(number, columns=[self._column], use_threads=False).column(0)
        fields = (
            [whole.type.field(i).name for i in range(whole.type.num_fields)] if pa.types.is_struct(whole.type) else []
        )
        columns = [pc.struct_field(whole, name) for name in ("bytes", "path") if name in fields] or [whole]
        return [column.chunk(0) if column.num_chunks == 1 else column for column in columns]


class _Groups:
    """Row groups that were read last, of at most so many bytes, and one at least."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[tuple[str, str, int], list[Any]] = OrderedDict()

    def get(self, key: tuple[str, str, int], read: Callable[[], list[Any]]) -> list[Any]:
        """The columns of a group, read where they are not kept."""
        if key not in self._held:
            self._held[key] = read()
            while len(self._held) > 1 and sum(map(_bytes, self._held.values())) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]

    def cache_clear(self) -> None:
        self._held.clear()


def _bytes(columns: Sequence[Any]) -> int:
    return sum(column.nbytes for column in columns)


_groups = _Groups(most=256 * 2**20)


@lru_cache(maxsize=16)
def _parquet(file: str, column: str) -> _Parquet:
    return _Parquet(file, column)
