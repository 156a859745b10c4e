"""Speed and peak memory of `prepare` as the corpus grows, by engine and workers, each in a process of its own.

    python benchmarks/prepare_speed.py --data ~/.cache/bedplate/quickstart/reviews.jsonl [--engines local ray]

The corpus is the data, COPIES times over in one file. Tokens/s count from the first tokens that were written: the start
of workers (and of Ray) is a figure of its own. "journal" is the share of the time that went into journals. Memory is
the peak of this process, and of all its processes together without counting shared pages twice (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from bedplate.data import shards
from bedplate.data.jobs import Corpus
from bedplate.data.text import prepare
from bedplate.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer


def measure(data: str, tokenizer: str, cache: str, engine: str, workers: int) -> dict[str, float]:
    """One preparation in this process."""
    peaks = {"own": 0, "all": 0}
    done = threading.Event()

    def watch() -> None:
        this = psutil.Process()
        while not done.wait(0.2):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
                    continue
            peaks["own"] = max(peaks["own"], this.memory_info().rss)
            peaks["all"] = max(peaks["all"], total)

    recording, write_journal = [0.0], shards.write_journal
    sync = shards.SplitWriter.sync

    def timed(work):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            begun = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                recording[0] += time.perf_counter() - begun

        return call

    shards.write_journal, shards.SplitWriter.sync = timed(write_journal), timed(sync)  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()
    started = time.perf_counter()
    first: list[tuple[float, int]] = []

    def progress(documents: int, tokens: int, text_bytes: int) -> None:
        if not first:
            first.append((time.perf_counter(), tokens))

    text = prepare(
        data, load_tokenizer(tokenizer), cache_dir=cache, workers=workers, engine=engine, on_progress=progress
    )
    seconds = time.perf_counter() - first[0][0]
    done.set()
    tokens = text.meta["train"]["tokens"] + text.meta["val"]["tokens"]
    return {
        "tokens": tokens,
        "start": first[0][0] - started,
        "speed": (tokens - first[0][1]) / seconds,
        "journal": recording[0] / seconds,
        "own": peaks["own"] / 2**20,
        "all": peaks["all"] / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a .jsonl with a column `text`")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engines", nargs="+", default=["local"])
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        data, tokenizer, cache, engine, workers = args.one
        print(json.dumps(measure(data, tokenizer, cache, engine, int(workers))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = args.data.read_bytes().splitlines(keepends=True)  # of str also at U+2028
        texts = (json.loads(line)["text"] for line in lines)
        save_tokenizer(train_tokenizer(texts, args.vocab_size), folder / "tokenizer", 1024)
        begun = time.process_time()
        characters = sum(
            len(text or "") for job in Corpus([(str(args.data), 0)], "text").jobs() for _, text in job.entries
        )
        print(
            f"reading alone: {characters / 1e6 / (time.process_time() - begun):,.0f} million characters/s of one core"
        )
        print(
            f"{'engine':<7}{'workers':>8}{'MB':>7}{'start s':>9}{'tokens/s':>11}"
            f"{'journal':>9}{'own MiB':>9}{'all MiB':>9}"
        )
        for copies in args.copies:
            data = folder / "corpus.jsonl"
            with open(data, "wb") as file:
                for _ in range(copies):
                    file.writelines(lines)
            for engine in args.engines:
                for workers in args.workers:
                    command = [sys.executable, __file__, "--data", str(args.data), "--one", str(data)]
                    command += [str(folder / "tokenizer"), str(folder / "cache"), engine, str(workers)]
                    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}  # one worker is one thread
                    found = json.loads(subprocess.run(command, env=environment, stdout=-1, check=True).stdout)
                    print(
                        f"{engine:<7}{workers:>8}{data.stat().st_size / 1e6:>7.0f}{found['start']:>9.1f}"
                        f"{found['speed']:>11,.0f}{found['journal']:>9.2%}{found['own']:>9.0f}{found['all']:>9.0f}",
                        flush=True,
                    )
                    shutil.rmtree(folder / "cache")


if __name__ == "__main__":
    main()
