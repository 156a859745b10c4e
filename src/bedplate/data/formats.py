"""Decoders: what the bytes of one file of a known format say, read as a stream; damage is told by file and place."""

import codecs
import csv
import gzip
import io
import json
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, cast

from bedplate.errors import InputError

Rows = Iterator[tuple[int, dict[str, Any]]]
"""(number of the line or row, counted from 1; the wanted columns, with values of any type)"""
Columns = Sequence[str] | None
"""The wanted columns of a row; None for all."""

BLOCK_BYTES = 2**18


@contextmanager
def telling_damage(source: str) -> Iterator[None]:
    """Turn what the decoders raise on a damaged file into an InputError that names the file."""
    import pyarrow as pa

    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error, tarfile.TarError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                f"{source}: cannot be read: {error.strerror}; check the file, its permissions and the disk"
            ) from error
        raise InputError(f"{source}: truncated or corrupt ({error}); fetch or write the file again") from error


def _not_utf8(source: str, offset: int, error: UnicodeDecodeError) -> InputError:
    value = error.object[error.start]
    is_utf16 = offset == 0 and value in (0xFE, 0xFF)  # its byte order mark, as of Excel's "Unicode text"
    return InputError(
        f"{source}: not UTF-8 at byte {offset} (0x{value:02x}: {error.reason}); "
        f"re-encode it as UTF-8, for example: iconv -f {'UTF-16' if is_utf16 else 'LATIN1'} -t UTF-8 IN > OUT"
    )


class TarHeader(tarfile.TarInfo):
    """A header that must be whole: tarfile itself takes a cut or damaged one for the end of the archive.

    An archive may end behind a member, without its blocks of zeros, as GNU tar allows: what stopped there is not told.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]  # zeros, or nothing
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} in place of a member or the end of the archive") from error


def decompress(stream: BinaryIO, compression: str) -> BinaryIO:
    """The bytes behind a "gz", "xz" or "zst" stream ("" gives the stream itself)."""
    if compression == "gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if compression == "xz":
        return cast(BinaryIO, lzma.LZMAFile(stream))
    if compression == "zst":
        import pyarrow as pa

        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), "zstd"), 2**20))
    return stream


def decoded(stream: BinaryIO, source: str) -> Iterator[str]:
    """The text of a UTF-8 stream in chunks, without its byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, at_start, block = 0, True, b" "
    with telling_damage(source):
        while block:
            block = stream.read(BLOCK_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(source, offset - pending + error.start, error) from error
            offset += len(block)
            if text:
                yield text.removeprefix("\ufeff") if at_start else text
                at_start = False


def _lines(stream: BinaryIO, source: str) -> Iterator[str]:
    """The lines of a UTF-8 stream with their ends, without the byte order mark."""
    offset = 0
    for raw in stream:
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(source, offset + error.start, error) from error
        yield line if offset else line.removeprefix("\ufeff")
        offset += len(raw)


def missing_column(where: str, column: str, names: Iterable[str]) -> InputError:
    """The error that `column` is not among `names`."""
    return InputError(
        f"{where}: no column '{column}'; present are {', '.join(map(repr, names)) or 'none'}: name one of these"
    )


def wanted(row: dict[str, Any], columns: Columns, source: str, number: int) -> dict[str, Any]:
    """The wanted columns of a row that may lack some of them."""
    if columns is None:
        return row
    values = {}
    for name in columns:  # a loop: a comprehension for the one column of most callers is slower
        if name not in row:
            raise missing_column(f"{source}:{number}", name, row)
        values[name] = row[name]
    return values


def _jsonl_rows(stream: BinaryIO, source: str, columns: Columns) -> Rows:
    for number, line in enumerate(_lines(stream, source), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{source}:{number}: not JSON ({error}); each line must be one JSON object") from error
        if not isinstance(row, dict):
            column = columns[0] if columns else "text"
            raise InputError(
                f'{source}:{number}: {type(row).__name__}, not a JSON object; write it as {{"{column}": ...}}'
            )
        yield number, wanted(row, columns, source, number)


def _csv_rows(stream: BinaryIO, source: str, columns: Columns, dialect: type[csv.Dialect] = csv.excel) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the module's own limit is 128 KiB; a C long holds no more on Windows
    # strict: a quote that never closes is an error here, instead of one field that swallows the rest of the file
    reader = csv.reader(_lines(stream, source), dialect, strict=True)
    number = 1
    try:
        header = next(reader, [])
        for column in columns or ():
            if column not in header:
                raise missing_column(source, column, header)
        places = [(column, header.index(column)) for column in (dict.fromkeys(header) if columns is None else columns)]
        number = reader.line_num + 1
        for row in reader:
            if row:
                if any(row[len(header) :]):
                    raise InputError(
                        f"{source}:{number}: {len(row)} fields, but the header has {len(header)}; "
                        f"quote fields that hold separators"
                    )
                try:
                    yield number, {column: row[index] for column, index in places}
                except IndexError:
                    column, index = next(place for place in places if place[1] >= len(row))
                    raise InputError(
                        f"{source}:{number}: {len(row)} fields, but '{column}' is field {index + 1}; mend the row"
                    ) from None
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{source}:{number}: not CSV ({error}); quote fields that hold separators, quotes or line breaks"
        ) from error


def _tsv_rows(stream: BinaryIO, source: str, columns: Columns) -> Rows:
    return _csv_rows(stream, source, columns, csv.excel_tab)


def _parquet_rows(stream: BinaryIO, source: str, columns: Columns) -> Rows:
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as spool:
        if not isinstance(getattr(stream, "raw", None), io.FileIO):
            shutil.copyfileobj(stream, spool)  # parquet is read from its end: archives and decoders cannot seek it
            stream = cast(BinaryIO, spool)
        file = pq.ParquetFile(stream)
        for column in columns or ():
            if column not in file.schema_arrow.names:
                raise missing_column(source, column, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=columns, use_threads=False):
            arrays = list(zip(batch.schema.names, batch.columns, strict=True))
            for index in range(batch.num_rows):
                number += 1
                row = {}
                try:
                    for name, array in arrays:
                        row[name] = array[index].as_py()
                except UnicodeDecodeError as error:
                    raise _not_utf8(f"{source}:{number}", error.start, error) from error
                except (ValueError, OverflowError, LookupError) as error:  # a time that Python's datetime cannot hold
                    raise InputError(f"{source}:{number}: cannot be read ({error}); leave the column out") from error
                yield number, row


ROWS: dict[str, Callable[[BinaryIO, str, Columns], Rows]] = {
    "jsonl": _jsonl_rows,
    "csv": _csv_rows,
    "tsv": _tsv_rows,
    "parquet": _parquet_rows,
}
