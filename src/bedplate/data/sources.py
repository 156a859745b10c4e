"""Documents from files, folders, archives, URLs and the Hugging Face Hub, streamed with constant memory.

A path may be a file, a folder, a glob (`**` too), a tar archive, a URL of any of these (`s3://bucket/*.parquet`), an
`hf:org/name[:config][@split]` id, or a list of these. A `.txt` file is one document; every row of the other formats is
one. Each format may be compressed (`.gz`, `.xz`, `.zst`).
"""

import glob
import hashlib
import json
import os
import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from bedplate.data import remote
from bedplate.data.formats import ROWS, Columns, TarHeader, decoded, decompress, telling_damage
from bedplate.data.hub import hub_fingerprint, hub_rows
from bedplate.data.remote import is_remote, location
from bedplate.errors import InputError

Paths = str | Path | Sequence[str | Path]
Content = dict[str, Any] | Iterator[str]
"""The columns of a row, or the pieces of a .txt."""

KINDS = ("txt", "jsonl", "csv", "tsv", "parquet", "tar")
COMPRESSIONS = ("gz", "xz", "zst")
PIECE_CHARACTERS = 2**18
"""Limit of one piece of a .txt document, in characters: at most 1 MiB of UTF-8, whatever the script."""

# Where a long text may be cut so that its pieces tokenise as the whole does. Pre-tokenizers (GPT-2's and its
# successors') share out a run of white space by what follows it, so a cut must leave every run whole: after a lone line
# break between two words, or before a run.
CUT = re.compile(r".*\S\n(?=\S)|.*\S(?=\s)", re.DOTALL)


@dataclass(frozen=True)
class Document:
    """One text and where it comes from.

    Attributes:
        source: "file" for .txt, "file:line" for rows ("file::member" and "file::member:line" inside a tar archive).
        pieces: The text in order, to be read once, before the next document is asked for; empty when the text is empty.
    """

    source: str
    pieces: Iterator[str]


def documents(path: Paths, column: str = "text") -> Iterator[Document]:
    """Stream the documents that `path` names, in a fixed order (sorted within folders and globs).

    Args:
        path: File, folder, glob, tar archive, URL, `hf:` id, or a list of these.
        column: Key or column of the text in formats with rows.

    Raises:
        InputError: Nothing found, nothing but empty texts, or anything that is not what its suffix promises.
    """
    found = False
    for name in resolve(path):
        for document in documents_in(name, column):
            first = next(document.pieces, None)
            found = found or first is not None
            yield Document(document.source, iter(()) if first is None else chain([first], document.pieces))
    if not found:
        raise no_text(path)


def documents_in(name: str, column: str) -> Iterator[Document]:
    """Stream the documents of one name that `resolve` gave; there may be none."""
    for source, content in _contents(name, [column]):
        pieces = _text_piece(source, column, content[column]) if isinstance(content, dict) else content
        yield Document(source, pieces)


def no_text(path: Paths) -> InputError:
    """The error that nothing of `path` is text."""
    return InputError(f"{shown(path)}: no text: every document is empty, or there is none; give files that hold text")


def rows(path: Paths, columns: Columns = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the rows that `path` names, as `documents` does, with the wanted columns (all when None).

    Yields:
        ("file:line", {column: value of any type}); values of csv and tsv are strings.

    Raises:
        InputError: What `documents` raises of paths and files, a column that is not there, or a .txt: it has no rows.
    """
    for name in resolve(path):
        for source, content in _contents(name, columns):
            if not isinstance(content, dict):
                kinds = ", ".join(f".{kind}" for kind in ROWS)
                raise InputError(f"{source}: a .txt has no rows with columns; give {kinds} or an hf: id")
            yield source, content


def checked_text(source: str, column: str, text: object) -> str:
    """`text` where it is a string of whole characters.

    Raises:
        InputError: It is not, with the place of the row.
    """
    if not isinstance(text, str):
        kind = type(text).__name__
        raise InputError(
            f"{source}: '{column}' holds {kind}, not a string; name the column of the text, or mend the row"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"{source}: '{column}' holds half a surrogate pair at character {error.start}"
        raise InputError(f"{where}; write whole characters") from error
    return text


def resolve(path: Paths) -> list[str]:
    """List the files, URLs of files and `hf:` ids that `path` names, in reading order.

    Folders and globs give their files of known suffixes that are not hidden; only a file that was named itself must
    have a known suffix.

    Raises:
        InputError: A path that does not exist or matches nothing, or a named file of a suffix that is not known.
    """
    if not isinstance(path, str | Path):
        if not path:
            raise InputError("the list of data paths is empty: give at least one file, folder, glob or hf: id")
        return [found for item in path for found in resolve(item)]
    name = location(path)
    if name.startswith("hf:"):
        return [name]
    if is_remote(name):
        return _resolve_url(name)
    try:
        root = Path(name).expanduser()
        is_file = root.is_file()
    except (OSError, RuntimeError) as error:  # a text in place of a path is a name too long; ~nobody has no home
        raise InputError(f"{name[:80]}: not a path ({error}); give a file, folder, glob or hf: id") from error
    if is_file:
        if kind_of(name) is None:
            raise InputError(f"{name}: unknown suffix '{root.suffix}'; known are {_known_suffixes()}")
        return [str(root)]
    if root.exists():
        matches = [root]
    else:
        matches = [Path(match) for match in sorted(glob.glob(str(root), recursive=True))]
        if not matches and re.search(r"[*?\[]", name):
            raise InputError(f"{name}: no file matches this pattern; quote it in the shell and check the folder")
        if not matches:
            raise InputError(f"{name}: no such file or folder (from {Path.cwd()}); check the spelling of the path")
    files = dict.fromkeys(file for match in matches for file in _files_under(match))
    if not files:
        raise InputError(f"{name}: no file with a known suffix in it; known are {_known_suffixes()}")
    return [str(file) for file in files]


def _resolve_url(url: str) -> list[str]:
    """URLs of the files that one names. A single file of a known suffix is not asked for before it is read."""
    if kind_of(url) is not None and not glob.has_magic(url):
        return [url]
    root = re.split(r"[*?\[]", url)[0].rpartition("/")[0] if glob.has_magic(url) else url
    files = [file for file in remote.find(url) if _is_wanted(file.removeprefix(root))]
    if not files:
        raise InputError(f"{shown(url)}: no file with a known suffix there; known are {_known_suffixes()}")
    return files


def kind_of(name: str) -> tuple[str, str] | None:
    """Return (kind, compression or "") by the suffixes of a file name, or None where they are not known."""
    name = re.sub(r"\.t(gz|xz)$", r".tar.\1", name.lower())
    stem, _, last = name.rpartition(".")
    compression = last if last in COMPRESSIONS else ""
    kind = stem.rpartition(".")[2] if compression else last
    return (kind, compression) if kind in KINDS and "." in name else None


def cut_text(chunks: Iterable[str], limit: int) -> Iterator[str]:
    """Cut a text that arrives in chunks into pieces of at most `limit` characters whose concatenation is the text.

    A piece ends after its last lone line break, else before its last run of white space, else at the limit; for
    byte-level BPE with GPT-2's pre-tokenization the first two give the tokens of the uncut text.
    """
    text = ""
    for chunk in chunks:
        text += chunk
        start = 0
        while len(text) - start > limit:
            match = CUT.match(text, start, start + limit)
            end = match.end() if match else start + limit
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def content_hash(path: Paths, cache_dir: str | Path) -> str:
    """Hash the kinds and bytes of all files that `path` names, in order, and what stands for bytes that are elsewhere.

    For a URL that is its name, size and version (as its storage tells it), for an `hf:` data set id and version.

    Digests of files are remembered in `cache_dir/hashes.json` by absolute path, size and modification time, so that a
    large file that has not changed is not read again.

    Returns:
        Hexadecimal BLAKE2b digest, 32 characters.
    """
    names = resolve(path)
    hashes = file_hashes([name for name in names if not (name.startswith("hf:") or is_remote(name))], cache_dir)
    total = hashlib.blake2b(digest_size=16)
    for name in names:
        if name.startswith("hf:"):
            part = f"{name} {hub_fingerprint(name)}"
        elif is_remote(name):
            part = f"{name} {remote.version(name)}"
        else:
            part = f"{kind_of(name)} {hashes[name]}"
        total.update(part.encode() + b"\n")
    return total.hexdigest()


def file_hashes(names: Iterable[str], cache_dir: str | Path) -> dict[str, str]:
    """Digests of files of this machine by name, remembered in `cache_dir` as `content_hash` says."""
    memo_path = Path(cache_dir) / "hashes.json"
    memo = _load_memo(memo_path)
    known = len(memo)
    hashes = {name: _file_hash(name, memo) for name in names}
    if len(memo) > known:
        temporary = memo_path.with_suffix(f".{os.getpid()}.part")
        with suppress(OSError):  # a folder that cannot be written to costs reading the files again
            memo_path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(memo))
            temporary.replace(memo_path)
    return hashes


def _load_memo(path: Path) -> dict[str, str]:
    try:
        return cast(dict[str, str], json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}  # the memo only saves time: without it the files are read


def _file_hash(name: str, memo: dict[str, str]) -> str:
    with telling_damage(name), open(name, "rb") as file:
        status = os.fstat(file.fileno())
        key = f"{Path(name).resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key in memo:
            return memo[key]
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if time.time() - status.st_mtime > 2:  # a file written this moment may change again within one tick of the clock
        memo[key] = digest
    return digest


def _known_suffixes() -> str:
    kinds = ", ".join(f".{kind}" for kind in KINDS)
    return f"{kinds}, .tgz, .txz, each also with {', '.join(f'.{suffix}' for suffix in COMPRESSIONS)}"


def shown(path: Paths) -> str:
    """`path` as messages and records write it."""
    paths = [path] if isinstance(path, str | Path) else path
    return ", ".join(remote.shown(location(item)) for item in paths)


def _files_under(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if kind_of(root.name) else []
    return sorted(file for file in below(root) if file.is_file() and _is_wanted(str(file.relative_to(root))))


def below(root: Path) -> Iterator[Path]:
    """All files below a folder, those behind links to folders among them, in no order."""
    return (Path(folder, name) for folder, _, names in walk(root) for name in names)


def walk(root: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, folders, files) as `os.walk` gives them, through links to folders, too, but never in a circle."""
    within: dict[str, tuple[str, ...]] = {
        str(root): (os.path.realpath(root),)
    }  # of each folder to come, the folders that it lies in
    for folder, inside, names in os.walk(root, followlinks=True):
        above = within.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in inside}
        inside[:] = [name for name in inside if real[name] not in above]
        within |= {os.path.join(folder, name): (*above, real[name]) for name in inside}
        yield folder, inside, names


def _is_wanted(name: str) -> bool:
    """Whether a file met in a folder or archive is data: of a known kind and not hidden (`.git/`, `._x.txt`)."""
    return kind_of(name) is not None and not any(part.startswith(".") and part != "." for part in Path(name).parts)


def _contents(name: str, columns: Columns) -> Iterator[tuple[str, Content]]:
    """(source, content) of every row and .txt of one name that `resolve` gave."""
    if name.startswith("hf:"):
        for number, row in hub_rows(name, columns):
            yield f"{name}:{number}", row
        return
    kind, compression = cast(tuple[str, str], kind_of(name))
    source = remote.shown(name)
    with telling_damage(source), remote.open_stream(name) if is_remote(name) else open(name, "rb") as file:
        stream = decompress(file, compression)
        yield from _read_tar(stream, source, columns) if kind == "tar" else _read(stream, kind, source, columns)


def _read_tar(stream: BinaryIO, name: str, columns: Columns) -> Iterator[tuple[str, Content]]:
    """Contents of the members of known kinds, in one pass; archives inside archives are skipped."""
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=TarHeader) as archive:
        while (member := archive.next()) is not None:
            kind = kind_of(member.name)
            if member.isfile() and kind and kind[0] != "tar" and _is_wanted(member.name):
                source = f"{name}::{member.name}"
                content = cast(BinaryIO, archive.extractfile(member))
                with telling_damage(source):
                    yield from _read(decompress(content, kind[1]), kind[0], source, columns)
            archive.members.clear()  # type: ignore[attr-defined]  # else tarfile remembers every member of millions


def _read(stream: BinaryIO, kind: str, source: str, columns: Columns) -> Iterator[tuple[str, Content]]:
    if kind == "txt":
        yield source, cut_text(decoded(stream, source), PIECE_CHARACTERS)
    else:
        for number, row in ROWS[kind](stream, source, columns):
            yield f"{source}:{number}", row


def _text_piece(source: str, column: str, text: object) -> Iterator[str]:
    text = checked_text(source, column, text)
    return iter([text] if text else [])
