"""Text, shards and caches behind URLs, on storage in memory: what is fetched, kept, uploaded and told."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from bedplate.data import jobs, remote, shards
from bedplate.data.shards import TextData, TokenStream
from bedplate.data.sources import content_hash, documents, resolve, shown
from bedplate.data.text import prepare
from bedplate.errors import InputError

from .writers import SENTENCES, compress, encode_rows, write_jsonl

TEXTS = [f"{i} {SENTENCES[i % 3]}" for i in range(200)]


class Storage:
    """What is behind memory://, and which reads of it have been made."""

    def __init__(self) -> None:
        self.files = fsspec.filesystem("memory")
        self.reads: list[str] = []

    def write(self, url: str, content: bytes) -> str:
        self.files.pipe_file(url, content)
        self.reads.clear()
        return url


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Storage]:
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path / "disk"))
    storage = Storage()
    memory = type(storage.files)
    for name in ("cat_file", "get_file", "_open"):
        real = getattr(memory, name)

        def counted(self: Any, path: str, *arguments: Any, real: Any = real, **options: Any) -> Any:
            assert real.__name__ != "cat_file" or not arguments  # the next is a version to s3fs, a start to others
            storage.reads.append(path.rpartition("/")[2])
            return real(self, path, *arguments, **options)

        monkeypatch.setattr(memory, name, counted)
    yield storage
    storage.files.store.clear()
    storage.files.pseudo_dirs[:] = [""]


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BEDPLATE_CACHE", str(tmp_path / "another"))


def everything(stream: TokenStream) -> list[int]:
    return stream.tokens(0, len(stream)).tolist()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("compression", ["", "zst"])
def test_text_is_read_from_urls(storage: Storage, kind: str, compression: str) -> None:
    suffix = f"{kind}.{compression}" if compression else kind
    for name, texts in {"b": ["three"], "a": ["one", "two"], ".hidden": ["no"]}.items():
        storage.write(f"memory://bucket/deep/{name}.{suffix}", compress(encode_rows(kind, texts), compression))
    storage.write("memory://bucket/deep/notes.md", b"no")
    for path in ("memory://bucket", f"memory://bucket/**/*.{suffix}", Path("memory://bucket/deep")):
        assert ["".join(document.pieces) for document in documents(path)] == ["one", "two", "three"]
    (first, *_) = documents(f"memory://bucket/deep/a.{suffix}")
    assert first.source.startswith(f"memory://bucket/deep/a.{suffix}:")


def test_a_url_of_this_disk_is_a_path(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["a"])
    assert resolve(f"file://{path}") == resolve(Path(f"file://{path}")) == [str(path)]
    assert resolve(f"file://{tmp_path}/*.jsonl") == [str(path)]


def test_the_hash_of_a_url_follows_its_version_and_reads_nothing(storage: Storage, tmp_path: Path) -> None:
    url = storage.write("memory://bucket/a.txt", b"one")
    first = content_hash(url, tmp_path)
    assert content_hash(url, tmp_path) == first
    storage.write(url, b"two")
    assert content_hash(url, tmp_path) != first
    assert not storage.reads


def test_a_remote_cache_is_filled_once_and_read_elsewhere_by_ranges(
    storage: Storage, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 128)
    path, cache = write_jsonl(tmp_path / "a.jsonl", TEXTS), Path("memory://bucket/cache")  # as a recipe holds it
    here = prepare(path, tokenizer, val_fraction=0.1, cache_dir=tmp_path / "local")
    made = prepare(path, tokenizer, val_fraction=0.1, cache_dir=cache)
    assert isinstance(made.directory, Path)  # where it was made nothing is fetched
    uploaded = storage.files.ls(f"/bucket/cache/{here.directory.name}", detail=False)
    assert {name.rpartition("/")[2]: storage.files.cat_file(name) for name in uploaded} == {
        file.name: file.read_bytes() for file in here.directory.iterdir()
    }
    another_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(jobs, "documents_in", lambda *_: pytest.fail("tokenised again"))
    found = prepare(path, tokenizer, val_fraction=0.1, cache_dir=cache)
    assert found.directory == f"memory://bucket/cache/{here.directory.name}" and found.meta == here.meta
    storage.reads.clear()
    for start, count in [(1990, 30), (1995, 20), (0, 0)]:  # from the first shard into the second
        assert found.train.tokens(start, count).tolist() == here.train.tokens(start, count).tolist()
        assert found.train.documents_of(start, count).tolist() == here.train.documents_of(start, count).tolist()
    assert storage.reads == ["train-00000.bin", "train-00001.bin"]  # two blocks, each once
    assert found.train.document_around(1995) == here.train.document_around(1995)
    assert everything(found.train) == everything(here.train)
    assert found.val is not None and here.val is not None and everything(found.val) == everything(here.val)
    storage.reads.clear()
    again = TextData(f"memory://bucket/cache/{here.directory.name}/")
    assert everything(again.train) == everything(here.train)
    assert storage.reads == ["meta.json"]  # the rest is on the disk


def test_a_run_with_a_remote_cache_learns_the_same(
    storage: Storage, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bedplate.api.pretrain import pretrain

    results = [pretrain(tiny_recipe(tmp_path / "local", "train.steps=2"))]
    for name in ("made", "found"):
        results.append(pretrain(tiny_recipe(tmp_path / name, "train.steps=2", "data.cache=memory://bucket/cache")))
        another_machine(monkeypatch, tmp_path)
    assert list((tmp_path / "another" / "remote").glob("*/train-00000.bin.00000"))  # it read by ranges
    assert results[0]["metrics"] == results[1]["metrics"] == results[2]["metrics"]


def test_an_upload_that_broke_off_is_not_taken_for_a_cache(
    storage: Storage, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write_jsonl(tmp_path / "a.jsonl", TEXTS), "memory://bucket/cache"
    memory = type(storage.files)
    with monkeypatch.context() as patch:
        real, sent = memory.put_file, []

        def breaks(self: Any, source: str, target: str, **options: Any) -> None:
            if len(sent) == 2:
                raise ConnectionError("reset by peer")
            sent.append(target)
            real(self, source, target, **options)

        patch.setattr(memory, "put_file", breaks)
        with pytest.raises(InputError, match=r"memory://bucket/cache/.*: cannot be reached \(ConnectionError: reset"):
            prepare(path, tokenizer, cache_dir=cache)
    assert not any(name.endswith("meta.json") for name in storage.files.store)
    another_machine(monkeypatch, tmp_path)
    made = prepare(path, tokenizer, cache_dir=cache)
    assert isinstance(made.directory, Path)
    assert shards.is_whole(f"{cache}/{made.directory.name}")
    storage.write(f"{cache}/{made.directory.name}/train-00000.bin", b"short")
    assert not shards.is_whole(f"{cache}/{made.directory.name}")


def test_a_shard_that_is_shorter_than_promised_is_told(
    storage: Storage, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(write_jsonl(tmp_path / "a.jsonl", TEXTS), tokenizer, cache_dir="memory://bucket/cache")
    assert isinstance(made.directory, Path)
    url = f"memory://bucket/cache/{made.directory.name}"
    storage.write(f"{url}/train-00000.bin", b"short")
    another_machine(monkeypatch, tmp_path)
    found = TextData(url)
    for _ in range(2):  # and nothing is kept of it
        with pytest.raises(InputError, match=r"train-00000\.bin: 5 bytes came where meta\.json promises .*upload"):
            found.train.tokens(0, 10)


@pytest.mark.parametrize("where", ["memory://bucket/ready", "{}/local"])
def test_a_prepared_folder_is_data_itself(storage: Storage, tokenizer: Tokenizer, tmp_path: Path, where: str) -> None:
    path, where = write_jsonl(tmp_path / "a.jsonl", TEXTS), where.format(tmp_path)
    made = prepare(path, tokenizer, val_fraction=0.1, cache_dir=where)
    ready = f"{where}/{Path(made.directory).name}"
    path.unlink()
    found = prepare([ready], tokenizer, cache_dir=tmp_path / "unused")
    assert found.meta == made.meta and everything(found.train) == everything(made.train)
    assert not (tmp_path / "unused").exists()
    other = Tokenizer.from_str(tokenizer.to_str())
    other.add_tokens(["more"])
    with pytest.raises(InputError, match="prepared with another tokenizer; give that one"):
        prepare(ready, other, cache_dir=tmp_path)
    with pytest.raises(InputError, match="prepared and split already; leave"):
        prepare(ready, tokenizer, val_path="x.txt", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("memory://bucket/none", "no file with a known suffix there"),
        ("memory://bucket/none.txt", "no such file, folder or bucket"),
        ("s4://bucket/a.txt", "not a URL that fsspec knows"),
        ("abfs://bucket/a.txt", "needs a package that is not here .*adlfs"),
    ],
)
def test_what_cannot_be_read_is_told(
    storage: Storage, tokenizer: Tokenizer, tmp_path: Path, url: str, part: str
) -> None:
    with pytest.raises(InputError, match=f"{url}.*: .*{part}"):
        prepare(url, tokenizer, cache_dir=tmp_path)


def test_secrets_in_urls_are_neither_taken_nor_told(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must not hold a password") as error:
        resolve("s3://key:hush@bucket/a.txt")
    assert "hush" not in str(error.value)
    with pytest.raises(InputError, match=r"^https://127.0.0.1:1/a.txt: ") as error:
        resolve("https://127.0.0.1:1/a.txt?signature=hush")
    assert "hush" not in str(error.value)
    assert shown(["https://host/a.txt?sig=hush", "s3://bucket/?.txt"]) == "https://host/a.txt, s3://bucket/?.txt"


def test_failures_of_storage_libraries_are_told(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    url = storage.write("memory://bucket/a.txt", b"text")

    class NoCredentialsError(Exception):
        """What botocore raises is no OSError."""

    def fails(*_: Any, **__: Any) -> None:
        raise NoCredentialsError("Unable to locate credentials for https://host/x?key=hush\nmore")

    monkeypatch.setattr(type(storage.files), "_open", fails)
    with pytest.raises(
        InputError, match=r"a\.txt: cannot be reached \(NoCredentialsError: Unable .*\); check"
    ) as error:
        list(documents(url))
    assert "hush" not in str(error.value) and "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, OSError)  # so that a preparation keeps what it has done


def test_local_use_imports_no_fsspec() -> None:
    code = "import sys, bedplate.data.text, bedplate.data.sources; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_blocks_are_an_array(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 64)
    values = np.arange(100, dtype="<u2")
    url = storage.write("memory://bucket/a.bin", values.tobytes())
    array = remote.RemoteArray(url, values.nbytes, "<u2", tmp_path)
    for part in (slice(0, 100), slice(31, 33), slice(32, 32), slice(99, 500), slice(200, 300)):
        assert array[part].tolist() == values[part].tolist()
    assert json.dumps(sorted(file.name for file in tmp_path.glob("*.bin.*"))) == json.dumps(
        [f"a.bin.{number:05d}" for number in range(4)]
    )
