"""Files behind URLs (s3://, gs://, https://, ...) through fsspec, which torch brings along.

Who may read them is what the environment says (AWS_*, FSSPEC_*, the machine's role): a URL that holds a password is
refused, since records would keep it, and what else of a URL may be a secret is cut out of messages.
"""

import errno
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bedplate.errors import InputError

BLOCK_BYTES = 2**22
"""What one request fetches of a shard: about as long to send as to find, in object stores."""
STREAM_BYTES = 2**22
VERSIONS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "Last-Modified", "mtime", "created")
"""What storages call the version of a file, the surest first."""


def location(path: str | Path) -> str:
    """A path or URL as text: `file://` becomes a path, and what pathlib makes of a URL ("s3:/x") a URL again.

    Raises:
        InputError: The URL holds a password.
    """
    name = str(path)
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,3}", name)
    if match is None:
        return name
    scheme, rest = match[1].lower(), name[match.end() :]
    if scheme == "file":
        return f"/{rest}"
    if re.match(r"[^/]*:[^/]*@", rest):
        raise InputError(f"{shown(name)}: a URL must not hold a password; give it in the environment")
    return f"{scheme}://{rest}"


def is_remote(name: str) -> bool:
    """Whether a `location` is a URL."""
    return re.match(r"[a-z][a-z0-9+.-]+://", name) is not None


def shown(text: str) -> str:
    """A text that may hold URLs, without their passwords and queries."""
    return re.sub(r"(:/+)[^/\s@]*:[^/\s@]*@", r"\1", re.sub(r"(https?:/+[^\s?]*)\?[^\s'\"]*", r"\1", text))


def mirror(url: str) -> Path:
    """The folder of this machine's disk for what is kept of a remote folder."""
    cache = location(os.environ.get("BEDPLATE_CACHE", "~/.cache/bedplate"))
    folder = Path("~/.cache/bedplate" if is_remote(cache) else cache).expanduser()
    return folder / "remote" / hashlib.blake2b(url.rstrip("/").encode(), digest_size=16).hexdigest()


def find(url: str) -> list[str]:
    """The URLs of the files that one names: itself, all under a folder, or what matches a glob; sorted."""
    storage, path = _storage(url)
    with telling(url):
        matches = storage.glob(path) if has_magic(path) else [path]
        files = {file for match in matches for file in storage.find(match)}
    return [str(storage.unstrip_protocol(file)) for file in sorted(files)]


def version(url: str) -> str:
    """Size and version of a remote file, as its storage tells them; nothing of it is read."""
    storage, path = _storage(url)
    with telling(url):
        info = storage.info(path)
    return f"{info.get('size')} {next((info[name] for name in VERSIONS if info.get(name)), '')}"


def open_stream(url: str) -> BinaryIO:
    """A remote file as a stream of bytes, read ahead by some MiB."""
    storage, path = _storage(url)
    with telling(url):
        file = storage.open(path, "rb")
    return io.BufferedReader(_Raw(url, file), STREAM_BYTES)


def sizes(url: str) -> dict[str, int]:
    """The names and sizes of the files in a remote folder; none where there is no such folder."""
    storage, path = _storage(url)
    with telling(url):
        storage.invalidate_cache()  # others write there
        found = storage.ls(path, detail=True) if storage.exists(path) else []
    return {str(info["name"]).rpartition("/")[2]: int(info["size"]) for info in found if info["type"] == "file"}


def read(url: str) -> bytes:
    """All bytes of a small remote file."""
    storage, path = _storage(url)
    with telling(url):
        return bytes(storage.cat_file(path))


def upload(directory: Path, url: str, last: str) -> None:
    """Copy the files of a folder, `last` as the last; what is there in full size stays."""
    storage, path = _storage(url)
    there = sizes(url)
    for file in sorted(directory.iterdir(), key=lambda file: (file.name == last, file.name)):
        if file.name == last or there.get(file.name) != file.stat().st_size:
            with telling(url):
                storage.put_file(str(file), f"{path}/{file.name}")


class RemoteArray:
    """A remote file as a read-only (n,) array of which only what is touched is fetched, in blocks kept in a folder.

    Rows of training batches lie all over the data, each some KiB: a block is worth its request, and soon all are here.
    Processes may share the folder: a block is there in full or not at all.

    Args:
        url: The file.
        size: Its size in bytes.
        dtype: Of the items.
        folder: Where blocks are kept, one file each.
    """

    def __init__(self, url: str, size: int, dtype: str, folder: Path) -> None:
        self._url, self._size, self._dtype, self._folder = url, size, np.dtype(dtype), folder
        self._name = url.rpartition("/")[2]

    def __len__(self) -> int:
        return self._size // self._dtype.itemsize

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        each = BLOCK_BYTES // self._dtype.itemsize
        out = np.empty(max(0, stop - start), self._dtype)
        place = start
        while place < stop:
            index, offset = divmod(place, each)
            count = min(each - offset, stop - place)
            block = self._block(index)
            out[place - start : place - start + count] = np.fromfile(
                block, self._dtype, count, offset=offset * self._dtype.itemsize
            )
            place += count
        return out

    def _block(self, index: int) -> Path:
        begin = index * BLOCK_BYTES
        end = min(begin + BLOCK_BYTES, self._size)

        def fetch(storage: Any, path: str, file: Path) -> None:
            file.write_bytes(storage.cat_file(path, start=begin, end=end))

        return _kept(self._folder / f"{self._name}.{index:05d}", end - begin, self._url, fetch)


def whole(url: str, size: int, folder: Path) -> Path:
    """A remote file of a known size on this disk, fetched if it is not there."""
    return _kept(
        folder / url.rpartition("/")[2], size, url, lambda storage, path, file: storage.get_file(path, str(file))
    )


def _kept(file: Path, size: int, url: str, fetch: Callable[[Any, str, Path], None]) -> Path:
    """`file`, after `fetch(storage, path, file)` where it is not there in its size; never there in part."""
    if file.exists() and file.stat().st_size == size:
        return file
    storage, path = _storage(url)
    with telling(url):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
        os.close(descriptor)
        temporary = Path(name)
        try:
            fetch(storage, path, temporary)
            found = temporary.stat().st_size
            if found != size:
                raise InputError(
                    f"{shown(url)}: {found:,} bytes came where meta.json promises {size:,}; upload the folder again"
                )
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    return file


class _Raw(io.RawIOBase):
    """A storage's file as `io.BufferedReader` wants it, whose failures are told by URL."""

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with telling(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _storage(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it) of a URL."""
    from fsspec.core import url_to_fs

    try:
        storage, path = url_to_fs(url)
        return storage, path
    except ImportError as error:
        raise InputError(f"{shown(url)}: this kind of URL needs a package that is not here ({error})") from error
    except ValueError as error:
        raise InputError(f"{shown(url)}: not a URL that fsspec knows ({shown(str(error))}); check its start") from error
    except OSError as error:  # some connect at once
        raise InputError(
            f"{shown(url)}: cannot be reached ({shown(str(error))}); check the URL and the network"
        ) from error


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn what a storage's library raises into an InputError that names the URL, with an OSError as its cause."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{shown(url)}: no such file, folder or bucket; check the URL") from error
    except Exception as error:  # every storage library has classes of its own, most of them no OSErrors
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"{shown(url)}: no space left on this machine's disk to keep it; free space, or set BEDPLATE_CACHE"
            ) from error
        said = shown(str(error)).partition("\n")[0]
        cause = OSError(f"{type(error).__name__}: {said}")
        cause.__cause__ = error
        remedy = "check the URL, the network, and the credentials in the environment"
        raise InputError(f"{shown(url)}: cannot be reached ({cause}); {remedy}") from cause
