import json
import os
import random
import sys
import tarfile
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data import formats, sources
from bedplate.data.sources import content_hash, cut_text, documents, kind_of, resolve, rows
from bedplate.errors import InputError

from .writers import compress, encode_rows, write_jsonl, write_tar

TEXTS = ["plain", 'quotes "inside", commas', "two\nlines\r\nand three", "Grüße 世界 🙂", "tab\there"]
COMPRESSIONS = ["", "gz", "xz", "zst"]
ROW_KINDS = ["jsonl", "csv", "tsv", "parquet"]


def read(path: object, column: str = "text") -> list[str]:
    return ["".join(document.pieces) for document in documents(path, column)]  # type: ignore[arg-type]


def file_name(kind: str, compression: str) -> str:
    return f"data.{kind}.{compression}".rstrip(".")


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_rows_come_back_from_every_format(tmp_path: Path, kind: str, compression: str) -> None:
    path = tmp_path / file_name(kind, compression)
    path.write_bytes(compress(encode_rows(kind, TEXTS, "body"), compression))
    assert read(path, "body") == TEXTS


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_text_file_is_one_document_cut_in_pieces(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(formats, "BLOCK_BYTES", 7)  # cuts inside characters
    text = "".join(f"Zeile {i} heißt 世界\n" for i in range(50))
    path = tmp_path / file_name("txt", compression)
    path.write_bytes(compress(text.encode(), compression))
    (document,) = [(d.source, list(d.pieces)) for d in documents(path)]
    assert document[0] == str(path)
    assert "".join(document[1]) == text
    assert len(document[1]) > 5
    assert all(len(piece) <= 100 and piece.endswith("\n") for piece in document[1])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_tar_members_of_known_kinds_are_read_in_order(tmp_path: Path, compression: str) -> None:
    members = {
        "b.txt": b"first",
        "note.md": b"skipped",
        "._b.txt": b"\xff skipped too",
        "a.jsonl.gz": compress(encode_rows("jsonl", ["second", "third"]), "gz"),
        "c.parquet": encode_rows("parquet", ["fourth"]),
    }
    path = write_tar(tmp_path / file_name("tar", compression), members, compression)
    found = [(document.source, "".join(document.pieces)) for document in documents(path)]
    assert found == [
        (f"{path}::b.txt", "first"),
        (f"{path}::a.jsonl.gz:1", "second"),
        (f"{path}::a.jsonl.gz:2", "third"),
        (f"{path}::c.parquet:1", "fourth"),
    ]


def test_tgz_and_upper_case_suffixes_are_known(tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "a.tgz", {"x.TXT": b"hi"}, "gz")) == ["hi"]
    assert kind_of("A.Txz") == ("tar", "xz")
    assert kind_of("txt") is None


def test_folders_globs_and_lists(tmp_path: Path) -> None:
    for name, text in {"b.txt": "b", "a.txt": "a", "sub/c.txt": "c", ".hidden/d.txt": "d", "e.md": "e"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read(tmp_path) == ["a", "b", "c"]
    assert read(f"{tmp_path}/**/*.txt") == ["a", "b", "c"]
    assert read([tmp_path / "sub", f"{tmp_path}/?.txt"]) == ["c", "a", "b"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "books").symlink_to(tmp_path / "sub")
    (tmp_path / "sub" / "round").symlink_to(tmp_path / "linked")
    assert read(tmp_path / "linked") == ["c"]


def test_sources_name_file_and_line_where_fields_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'id,text\r\n1,"one\r\ntwo"\r\n\r\n2,three\r\n')
    assert [(d.source, "".join(d.pieces)) for d in documents(path)] == [
        (f"{path}:2", "one\r\ntwo"),
        (f"{path}:5", "three"),
    ]


def test_a_field_of_any_size(tmp_path: Path) -> None:
    text = "x" * 300_000
    path = tmp_path / "x.csv"
    path.write_bytes(encode_rows("csv", [text]))
    assert read(path) == [text]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" + {"txt": b"hi", "jsonl": b'{"text": "hi"}', "csv": b"text\nhi\n"}[kind])
    assert read(path) == ["hi"]


def test_empty_texts_are_documents_without_pieces(tmp_path: Path) -> None:
    assert read(write_jsonl(tmp_path / "x.jsonl", ["", "a", ""])) == ["", "a", ""]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', [":2", "not JSON", "Expecting value"]),
        ("x.jsonl", b'\n["a"]\n', [":2", "list", "not a JSON object"]),
        ("x.jsonl", b'{"body": "a", "id": 1}\n', [":1", "no column 'text'", "'body', 'id'"]),
        ("x.jsonl", b'{"text": "a"}\n{"text": 3}\n', [":2", "int", "not a string"]),
        ("x.jsonl", b'{"text": "a\\ud83d"}\n', [":1", "half a surrogate pair at character 1"]),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xfc"}\n', ["not UTF-8 at byte 24", "0xfc", "iconv"]),
        ("x.csv", b"id,body\n1,a\n", ["no column 'text'", "'id', 'body'"]),
        ("x.csv", b"id,text\n1,a\n2\n", [":3", "1 fields", "field 2"]),
        ("x.csv", b'id,text\n1,a\n2,"open\n', [":3", "not CSV", "unexpected end of data"]),
        ("x.csv", b"id,text\n1,\xe9\n", ["not UTF-8 at byte 10"]),
        ("x.tsv", b"id\tbody\n1\ta\n", ["no column 'text'"]),
        ("x.csv", "id,text\n1,é\n".encode("utf-16"), ["not UTF-8 at byte 0", "iconv -f UTF-16 "]),
        ("x.txt", b"good\xff", ["not UTF-8 at byte 4", "0xff", "iconv"]),
        ("x.txt", b"abc\xe4\xb8", ["not UTF-8 at byte 3", "unexpected end of data"]),
        ("x.txt", b"", ["no text"]),
        ("x.jsonl", b"\n", ["no text"]),
        ("x.jsonl", b'{"text": ""}\n', ["no text"]),
        ("x.md", b"hi", ["unknown suffix '.md'", ".parquet", ".zst"]),
        ("x.parquet", b"PAR1 nonsense", ["truncated or corrupt"]),
        ("x.tar", b"nonsense" * 200, ["truncated or corrupt"]),
        ("x.txt.gz", b"nonsense", ["truncated or corrupt"]),
        ("x.txt.xz", b"nonsense", ["truncated or corrupt"]),
        ("x.txt.zst", b"nonsense", ["truncated or corrupt"]),
    ],
)
def test_bad_content_is_told_by_place_and_remedy(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_tar_without_its_end_is_told(tmp_path: Path, compression: str) -> None:
    whole = write_tar(tmp_path / "x.tar", {"a.txt": b"hi"}).read_bytes()
    path = tmp_path / file_name("tar", compression)
    path.write_bytes(compress(whole[: 2 * tarfile.BLOCKSIZE] + b"half a header", compression))
    with pytest.raises(InputError, match=rf"{path.name}: truncated or corrupt \(.* the end of the archive\)"):
        read(path)


def test_wrong_encoding_far_into_a_file_is_told_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "ü".encode() * 300_000 + b"a\xfc b")
    with pytest.raises(InputError, match="at byte 600004 "):
        read(path)


@pytest.mark.parametrize("kind", ["txt", *ROW_KINDS])
@pytest.mark.parametrize("compression", COMPRESSIONS[1:])
def test_truncated_compressed_files(tmp_path: Path, kind: str, compression: str) -> None:
    noise = [random.Random(i).randbytes(3000).hex() for i in range(40)]
    data = "\n".join(noise).encode() if kind == "txt" else encode_rows(kind, noise)
    path = tmp_path / file_name(kind, compression)
    path.write_bytes(compress(data, compression)[: -len(data) // 4])
    with pytest.raises(InputError, match="truncated or corrupt") as error:
        read(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_truncated_archives(tmp_path: Path, compression: str) -> None:
    noise = {f"{i}.txt": random.Random(i).randbytes(30_000).hex().encode() for i in range(4)}
    path = write_tar(tmp_path / file_name("tar", compression), noise, compression)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated or corrupt"):
        read(path)


def test_a_null_in_parquet_is_told_by_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(InputError, match=r"x\.parquet:2: 'text' holds NoneType, not a string"):
        read(path)


def test_missing_paths(tmp_path: Path) -> None:
    for path, part in [
        (tmp_path / "none.txt", "none.txt: no such file or folder"),
        (f"{tmp_path}/*.txt", "no file matches this pattern"),
        (tmp_path, "no file with a known suffix"),
        ([], "list of data paths is empty"),
    ]:
        with pytest.raises(InputError, match=part.replace("*", r"\*")):
            read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read(path)


class FakeRows(list[dict[str, str]]):
    def decode(self, enable: bool) -> "FakeRows":
        assert not enable
        return self


class FakeHub(types.ModuleType):
    """Stands in for the `datasets` library, which needs the network."""

    def load_dataset(self, name: str, config: str | None, *, split: str, streaming: bool) -> FakeRows:
        if name == "org/missing":
            raise FileNotFoundError("Dataset 'org/missing' doesn't exist")
        assert streaming
        return FakeRows([{"text": f"{name} {config} {split}"}])

    def load_dataset_builder(self, name: str, config: str | None) -> types.SimpleNamespace:
        return types.SimpleNamespace(hash="v1")


def test_hub_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub("datasets"))
    assert read("hf:org/name") == ["org/name None train"]
    assert read("hf:org/name:en@train[:10%]") == ["org/name en train[:10%]"]
    assert content_hash("hf:org/name", tmp_path) != content_hash("hf:org/name:en", tmp_path)
    for name, part in [
        ("hf:org/name", "no column 'body'"),
        ("hf:org/missing", "doesn't exist"),
        ("hf:a b", "write hf:org/name"),
    ]:
        with pytest.raises(InputError, match=part):
            read(name, "body")


def test_a_missing_hub_library_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install "bedplate\[hub\]"'):
        read("hf:org/name")


@given(st.lists(st.text()), st.integers(1, 20))
def test_cut_pieces_are_the_text_within_the_limit(chunks: list[str], limit: int) -> None:
    pieces = list(cut_text(chunks, limit))
    assert "".join(pieces) == "".join(chunks)
    assert all(0 < len(piece) <= limit for piece in pieces)


WORDS = st.text(alphabet="abé世.,'1", min_size=1, max_size=8)
SPACES = st.text(alphabet=" \n\r\t\u3000\xa0", min_size=1, max_size=4).filter(lambda space: space[0] in " \n\r\t")


@given(st.lists(st.tuples(WORDS, SPACES), max_size=40))
def test_cut_pieces_tokenise_as_the_whole(tokenizer: Tokenizer, parts: list[tuple[str, str]]) -> None:
    text = "".join(word + space for word, space in parts)
    pieces = list(cut_text([text], 16))
    cut_inside_a_word = [i for i, piece in enumerate(pieces[1:]) if not (piece[0].isspace() or pieces[i][-1].isspace())]
    assert not cut_inside_a_word
    assert [i for piece in pieces for i in tokenizer.encode(piece).ids] == tokenizer.encode(text).ids


def test_content_hash_follows_content_kind_and_order_not_names(tmp_path: Path) -> None:
    for folder, names in {"one": ("a", "b"), "two": ("c", "d")}.items():
        (tmp_path / folder).mkdir()
        for name, text in zip(names, ("x", "y"), strict=True):
            (tmp_path / folder / f"{name}.txt").write_text(text)
    one, two, cache = tmp_path / "one", tmp_path / "two", tmp_path / "cache"
    first = content_hash(one, cache)
    assert first == content_hash(two, cache)
    assert first != content_hash([one / "b.txt", one / "a.txt"], cache)
    (two / "d.txt").rename(two / "d.jsonl")
    assert first != content_hash(two, cache)


def test_content_hash_remembers_settled_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    fresh = content_hash(path, tmp_path)
    path.write_text("y")
    assert content_hash(path, tmp_path) != fresh
    os.utime(path, (1, 1))
    settled = content_hash(path, tmp_path)
    assert len(json.loads((tmp_path / "hashes.json").read_text())) == 1
    monkeypatch.setattr(sources.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert content_hash(path, tmp_path) == settled
    (tmp_path / "hashes.json").write_text("{broken")
    monkeypatch.undo()
    assert content_hash(path, tmp_path) == settled


def test_a_text_in_place_of_a_path() -> None:
    with pytest.raises(InputError, match="not a path"):
        resolve("It was a long day. " * 100)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_whole_rows_come_back_from_every_format(tmp_path: Path, kind: str, compression: str) -> None:
    path = tmp_path / file_name(kind, compression)
    path.write_bytes(compress(encode_rows(kind, ["a", "b"], "body"), compression))
    number = str if kind in ("csv", "tsv") else int
    first = 2 if kind in ("csv", "tsv") else 1
    expected = [(f"{path}:{first + i}", {"id": number(i), "body": text}) for i, text in enumerate("ab")]
    assert list(rows(path)) == expected
    assert list(rows(path, ["body", "id"])) == expected
    assert list(rows(path, ["body"])) == [(source, {"body": row["body"]}) for source, row in expected]
    with pytest.raises(InputError, match="no column 'label'; present are 'id', 'body'"):
        list(rows(path, ["body", "label"]))


def test_whole_rows_from_folders_archives_and_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub("datasets"))
    write_jsonl(tmp_path / "b.jsonl", ["second"])
    tar = write_tar(tmp_path / "a.tar", {"x.csv": b"text,label\nfirst,1\n"})
    assert list(rows([tmp_path, "hf:org/name"])) == [
        (f"{tar}::x.csv:2", {"text": "first", "label": "1"}),
        (f"{tmp_path}/b.jsonl:1", {"id": 0, "text": "second"}),
        ("hf:org/name:1", {"text": "org/name None train"}),
    ]


def test_a_text_file_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hi")
    with pytest.raises(InputError, match=r"x\.txt: a \.txt has no rows with columns; give \.jsonl, \.csv, .* hf: id"):
        list(rows(tmp_path))


def test_fields_beyond_the_header_are_told_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label\na,1,\nwell, no,0\n")
    with pytest.raises(InputError, match=r"x\.csv:3: 3 fields, but the header has 2; quote fields"):
        list(rows(path))
    with pytest.raises(InputError, match=r"x\.csv:3: 3 fields"):  # a text would end at its first comma
        list(documents(path))
    path.write_text("text,label\na,1,\nb\n")
    with pytest.raises(InputError, match=r"x\.csv:3: 1 fields, but 'label' is field 2; mend the row"):
        list(rows(path))


def test_a_time_that_python_cannot_hold_is_told_by_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a", "b"], "day": pa.array([0, 2**40], pa.timestamp("s"))}), path)
    with pytest.raises(InputError, match=r"x\.parquet:2: cannot be read .*; leave the column out"):
        list(rows(path))
    assert len(list(rows(path, ["text"]))) == 2
