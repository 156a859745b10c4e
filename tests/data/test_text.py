"""Preparation: packing, split, cache and workers."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bedplate.data import jobs, shards, text
from bedplate.data.shards import SplitWriter, TextData, TokenStream
from bedplate.data.text import prepare
from bedplate.errors import InputError

from .writers import SENTENCES, write_jsonl, write_tar


def pack(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True  # as text, which they are in data
    return [i for item in texts for i in (*tokenizer.encode(item).ids, 0)]


def everything(stream: TokenStream | None) -> list[int]:
    return [] if stream is None else stream.tokens(0, len(stream)).tolist()


def texts_of(stream: TokenStream | None, tokenizer: Tokenizer) -> list[str]:
    if stream is None:
        return []
    ids, of = stream.tokens(0, len(stream)), stream.documents_of(0, len(stream))
    return [tokenizer.decode(ids[of == i][:-1].tolist(), skip_special_tokens=False) for i in range(stream.documents)]


def files_of(data: TextData) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.directory.iterdir()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=30), min_size=1, max_size=12).filter(any))
def test_packing_is_encode_and_end_of_text_for_each_document(
    tokenizer: Tokenizer, tmp_path: Path, texts: list[str]
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 14)  # seven tokens: most documents cross shards
        patch.setattr(jobs, "JOB_CHARACTERS", 50)
        data = prepare(path, tokenizer, val_fraction=0, cache_dir=tmp_path / "cache")
    kept = [item for item in texts if item]
    assert everything(data.train) == pack(tokenizer, kept)
    assert texts_of(data.train, tokenizer) == kept
    assert data.val is None
    assert (data.train.documents, data.train.bytes) == (len(kept), sum(len(item.encode()) for item in kept))
    assert data.meta["skipped_empty"] == len(texts) - len(kept)
    first = len(data.train) // 3
    assert data.train.tokens(first, len(data.train) - first).tolist() == everything(data.train)[first:]


def test_the_split_is_by_content(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(300)]
    doubled = texts + texts[::-1]
    sides = []
    for name, items in {"a.jsonl": texts, "b.jsonl": doubled}.items():
        data = prepare(write_jsonl(tmp_path / name, items), tokenizer, val_fraction=0.2, cache_dir=tmp_path)
        assert data.meta["split"] == "documents"
        train, val = texts_of(data.train, tokenizer), texts_of(data.val, tokenizer)
        assert sorted(train + val) == sorted(items)
        assert not set(train) & set(val)
        sides.append(set(val))
    assert sides[0] == sides[1]  # neither order nor copies move a document
    assert 30 < len(sides[0]) < 90


def test_few_documents_give_the_one_of_smallest_hash_to_validation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["one", "two", "three"]
    found = [
        texts_of(
            prepare(write_jsonl(tmp_path / "x.jsonl", items), tokenizer, val_fraction=1e-9, cache_dir=tmp_path).val,
            tokenizer,
        )
        for items in (texts, texts[::-1])
    ]
    assert found == [[min(texts, key=jobs._hash)]] * 2


def test_a_lone_text_file_is_split_by_runs_of_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = "".join(f"{i}: {SENTENCES[i % 3]}" for i in range(3000))
    path = tmp_path / "x.txt"
    path.write_text(content)
    data = prepare(path, tokenizer, val_fraction=0.1, cache_dir=tmp_path)
    assert data.meta["split"] == "pieces"
    assert data.val is not None
    assert data.train.bytes + data.val.bytes == len(content.encode())
    assert 0.02 < data.val.bytes / data.train.bytes < 0.3
    runs = texts_of(data.train, tokenizer) + texts_of(data.val, tokenizer)
    assert all(run.endswith("\n") for run in runs)
    assert sorted("".join(runs).splitlines()) == sorted(content.splitlines())
    assert data.train.documents <= data.val.documents + 1  # train pieces that follow one another stay one document


def test_validation_text_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    train, val = write_jsonl(tmp_path / "a.jsonl", ["a", "b"]), tmp_path / "b.txt"
    val.write_text("c")
    data = prepare(train, tokenizer, val_path=val, cache_dir=tmp_path)
    assert texts_of(data.train, tokenizer) == ["a", "b"]
    assert texts_of(data.val, tokenizer) == ["c"]
    assert data.meta["split"] == "path"


@pytest.mark.parametrize(
    ("texts", "part"), [(["only"], "a single document cannot be split"), (["same", "same"], "nothing to train on")]
)
def test_a_split_that_is_not_possible_is_told(
    tokenizer: Tokenizer, tmp_path: Path, texts: list[str], part: str
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", texts)
    with pytest.raises(InputError, match=rf"x\.jsonl: .*{part}.*data\.val_path.*val_fraction"):
        prepare(path, tokenizer, cache_dir=tmp_path / "cache")
    assert not [item for item in (tmp_path / "cache").iterdir() if item.is_dir()]
    assert texts_of(prepare(path, tokenizer, val_fraction=0, cache_dir=tmp_path).train, tokenizer) == texts


@pytest.mark.parametrize("settings_", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"workers": 0}])
def test_bad_settings_are_told(tokenizer: Tokenizer, tmp_path: Path, settings_: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings_))):
        prepare(write_jsonl(tmp_path / "x.jsonl", ["a"]), tokenizer, cache_dir=tmp_path, **settings_)


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    big = Tokenizer(models.WordLevel({f"w{i}": i for i in range(70_000)} | {"</s>": 70_000}, unk_token="w0"))
    big.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = write_jsonl(tmp_path / "x.jsonl", ["w69999 w1"])
    data = prepare(path, big, val_fraction=0, cache_dir=tmp_path)
    assert data.meta["dtype"] == "<u4"
    assert everything(data.train) == [69_999, 1, 70_000]


def test_shards_do_not_depend_on_the_number_of_workers(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "JOB_CHARACTERS", 500)
    members = {"a.txt": ("".join(SENTENCES) * 30).encode(), "b.jsonl": b'{"text": "b"}\n{"text": ""}\n' * 50}
    path = write_tar(tmp_path / "x.tar", members)
    one = prepare(path, tokenizer, val_fraction=0.3, cache_dir=tmp_path / "one")
    two = prepare(path, tokenizer, val_fraction=0.3, cache_dir=tmp_path / "two", workers=2)
    assert files_of(one) == files_of(two)
    assert "train-00000.bin" in files_of(two)


def test_workers_pass_bad_input_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2"):
        prepare(path, tokenizer, val_fraction=0, cache_dir=tmp_path, workers=2)


def test_a_second_call_opens_the_cache(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ["a", "b", "c"])
    seen: list[tuple[int, int, int]] = []
    first = prepare(path, tokenizer, cache_dir=tmp_path, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(3, 6, 3)]
    monkeypatch.setattr(jobs, "documents_in", lambda *_: pytest.fail("read again"))
    assert prepare(path, tokenizer, cache_dir=tmp_path).directory == first.directory


def test_of_many_processes_one_prepares(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = write_jsonl(tmp_path / "x.jsonl", [f"{i} {SENTENCES[i % 3]}" for i in range(2000)])
    script = (
        "from bedplate.data.text import prepare\n"
        "from bedplate.data.tokenizer import load_tokenizer\n"
        "calls = []\n"
        f"data = prepare({str(path)!r}, load_tokenizer({str(tmp_path)!r}), cache_dir={str(tmp_path / 'cache')!r},\n"
        "               on_progress=lambda *_: calls.append(0))\n"
        "print(len(data.train), bool(calls))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    lengths, prepared = zip(*(rank.communicate()[0].split() for rank in ranks), strict=True)
    assert len(set(lengths)) == 1 and sorted(prepared) == ["False", "False", "True"]


@pytest.mark.parametrize("change", ["content", "tokenizer", "fraction", "column"])
def test_any_change_is_another_cache(tokenizer: Tokenizer, tmp_path: Path, change: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "body": "c"}\n{"text": "b", "body": "d"}\n')
    first = prepare(path, tokenizer, cache_dir=tmp_path).directory
    options: dict[str, Any] = {}
    if change == "content":
        path.write_text(path.read_text().replace("a", "z"))
    elif change == "tokenizer":
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.add_tokens(["more"])
    else:
        options = {"val_fraction": 0.02} if change == "fraction" else {"column": "body"}
    assert prepare(path, tokenizer, cache_dir=tmp_path, **options).directory != first


@pytest.mark.parametrize("damage", ["truncated", "missing", "meta", "format"])
def test_a_damaged_cache_is_built_again(tokenizer: Tokenizer, tmp_path: Path, damage: str) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ["a", "b", "c"])
    data = prepare(path, tokenizer, cache_dir=tmp_path)
    whole = files_of(data)
    shard, meta = data.directory / "train-00000.bin", data.directory / "meta.json"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-2])
    elif damage == "missing":
        shard.unlink()
    else:
        meta.write_text("{" if damage == "meta" else json.dumps({**data.meta, "format": 0}))
    assert files_of(prepare(path, tokenizer, cache_dir=tmp_path)) == whole


@pytest.mark.parametrize("same_again", [True, False])
def test_a_killed_preparation_leaves_nothing(tokenizer: Tokenizer, tmp_path: Path, same_again: bool) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = write_jsonl(tmp_path / "x.jsonl", ["a", "b", "c"])
    script = (
        "import os, sys\n"
        "from bedplate.data.text import prepare\n"
        "from bedplate.data.tokenizer import load_tokenizer\n"
        f"prepare({str(path)!r}, load_tokenizer({str(tmp_path)!r}), cache_dir={str(tmp_path / 'cache')!r},\n"
        "        on_progress=lambda *_: os.kill(os.getpid(), 9))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert killed.returncode == -9
    cache = tmp_path / "cache"
    assert [item.suffix for item in cache.iterdir() if item.is_dir()] == [".tmp"]
    if not same_again:
        path = write_jsonl(tmp_path / "y.jsonl", ["d", "e"])
    data = prepare(path, tokenizer, cache_dir=cache)
    assert [item for item in cache.iterdir() if item.is_dir()] == [data.directory]


def test_the_half_made_cache_of_a_live_process_is_left_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "busy.tmp").mkdir()
    with text._locked(tmp_path / "busy.lock"):
        prepare(write_jsonl(tmp_path / "x.jsonl", ["a", "b"]), tokenizer, cache_dir=tmp_path)
    assert (tmp_path / "busy.tmp").exists()


def test_a_disk_that_is_full_at_the_end_is_told(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(InputError, match="no space left"):
        prepare(write_jsonl(tmp_path / "x.jsonl", ["a", "b"]), tokenizer, cache_dir=tmp_path)
    assert not [item for item in tmp_path.iterdir() if item.is_dir()]


def test_a_full_disk_is_told(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, calls = SplitWriter.append, 0

    def full(self: SplitWriter, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, *arguments)

    monkeypatch.setattr(SplitWriter, "append", full)
    monkeypatch.setattr(jobs, "JOB_CHARACTERS", 1)
    path = write_jsonl(tmp_path / "x.jsonl", ["a", "b"])
    with pytest.raises(InputError, match=rf"{tmp_path}.*: no space left .* after 2 bytes .*data\.cache"):
        prepare(path, tokenizer, val_fraction=0, cache_dir=tmp_path)
    assert not [item for item in tmp_path.iterdir() if item.is_dir()]


def test_positions_outside_a_stream_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    stream = prepare(
        write_jsonl(tmp_path / "x.jsonl", ["ab", "c"]), tokenizer, val_fraction=0, cache_dir=tmp_path
    ).train
    assert stream.documents_of(0, 5).tolist() == [0, 0, 0, 1, 1]
    assert stream.tokens(5, 0).shape == (0,)
    for start, count in [(-1, 2), (4, 2), (0, 6)]:
        with pytest.raises(IndexError, match="of a stream of 5"):
            stream.tokens(start, count)
        with pytest.raises(IndexError):
            stream.documents_of(start, count)
    with pytest.raises(ValueError, match="read-only"):
        stream._shards[0][0] = 1


def test_the_package_stays_light() -> None:
    modules = "bedplate.data.sources, bedplate.data.tokenizer, bedplate.data.text"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_gigabyte_is_prepared_in_less_memory(tokenizer: Tokenizer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"big.{kind}"
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        while file.tell() < 2**30:
            line = "".join(SENTENCES[i].rstrip() + " " for i in rng.integers(0, 3, 40)) + str(rng.integers(10**9))
            file.write((line if kind == "txt" else json.dumps({"text": line})) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepare(path, tokenizer, cache_dir=tmp_path / "cache", workers=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def test_a_text_cannot_forge_the_border_of_a_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ["one<|endoftext|>two"])
    data = prepare(path, tokenizer, val_fraction=0, cache_dir=tmp_path / "cache")
    ids = everything(data.train)
    assert ids.count(0) == 1 and ids[-1] == 0
    assert tokenizer.decode(ids[:-1]) == "one<|endoftext|>two"
