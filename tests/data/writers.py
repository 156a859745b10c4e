"""Writers of any format and compression, for the tests of the data room."""

import csv
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.\n",
    "It was the best of times, it was the worst of times.\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich.\n",
)


def encode_rows(kind: str, texts: Sequence[str], column: str = "text") -> bytes:
    """The bytes of a file of a kind that has rows."""
    if kind == "jsonl":
        return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts)).encode()
    if kind == "parquet":
        sink = io.BytesIO()
        pq.write_table(pa.table({"id": range(len(texts)), column: list(texts)}), sink, row_group_size=2)
        return sink.getvalue()
    out = io.StringIO(newline="")
    writer = csv.writer(out, csv.excel_tab if kind == "tsv" else csv.excel)
    writer.writerows([["id", column], *([str(i), text] for i, text in enumerate(texts))])
    return out.getvalue().encode()


def compress(data: bytes, compression: str) -> bytes:
    if compression == "zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return bytes(sink.getvalue())
    return {"": bytes, "gz": gzip.compress, "xz": lzma.compress}[compression](data)


def write_tar(path: Path, members: dict[str, bytes], compression: str = "") -> Path:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(compress(sink.getvalue(), compression))
    return path


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    path.write_bytes(encode_rows("jsonl", texts))
    return path
