"""Fine-tuning of a summariser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from bedplate.api.finetune_chat import ChatRun, hold_out
from bedplate.api.folders import word
from bedplate.api.record import write_report
from bedplate.data.chat import Example
from bedplate.data.duplicates import near_duplicates
from bedplate.data.summaries import CUE, Summarized, SummaryEncoder, SummaryForm, encode_summaries, read_summaries
from bedplate.data.tokenizer import end_of_text_id, tokenizer_config
from bedplate.errors import InputError
from bedplate.report.summaries import summary_sections
from bedplate.tasks.language import Language
from bedplate.tasks.summarize import Summarizer, examples, require_rouge, score
from bedplate.train.log import RunLog, write_whole


class SummarizeRun(ChatRun):
    """A summariser from a base model and documents with summaries: a summary is the response to its document."""

    longest = 512
    scored: Mapping[str, Any] = MappingProxyType({})  # what `score` found

    def prepare(self, log: RunLog) -> None:
        require_rouge()  # hours before it is needed
        self.base = base = self.load_base()
        self.adapt(base.need_language_model().with_dropout(self.recipe.model.dropout), log)
        self.stop_ids = base.special.eos or (end_of_text_id(self.tokenizer),)
        base.special = replace(base.special, eos=tuple(self.stop_ids))  # what it learns to end with
        self.summaries = SummaryEncoder(self.tokenizer, CUE, self.stop_ids[0])
        self.timed("data", lambda: self._read(log))
        config = dict(base.tokenizer_config) or tokenizer_config(self.tokenizer, self.context)
        base.tokenizer_config = config | self.form.to_config()
        room = self.length - self.recipe.evaluate.sample_tokens
        shown = self.parts.get("val", self.parts["train"])[0].document
        self.task = Language(
            self.module,
            self.tokenizer,
            [shown] if room >= self.length // 4 else [],
            self.recipe.evaluate.sample_tokens,
            encode_prompt=partial(self.summaries.prompt, room=room),
            stop_ids=self.stop_ids,
        )

    def score(self) -> None:
        """Score the summaries of the test documents, else of the held-out ones, once."""
        name = next((name for name in ("test", "val") if name in self.parts), None)
        if name is None:
            return
        rows = self.parts[name]
        writer = Summarizer(self.module, self.tokenizer, self.form, self.stop_ids)
        texts = self.timed("summarising", lambda: writer.summarize([row.document for row in rows]))
        self.scored = {"on": name, **score(rows, texts), "examples": examples(rows, texts)}
        write_whole(self.out / "scored.json", json.dumps(self.scored, indent=2, ensure_ascii=False))
        written = [
            {"document": r.document, "summary": r.summaries, "text": t} for r, t in zip(rows, texts, strict=True)
        ]
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in written)
        write_whole(self.out / "summaries.jsonl", "".join(lines))

    def record(self) -> dict[str, Any]:
        record = super().record() | {"chat": False, "summarizes": True}
        if self.scored:  # not before the model is trained: what is on the disk may be of an earlier one
            lead = {f"first sentence {name}": metric for name, metric in self.scored["baselines"]["lead"].items()}
            measured = {**self.scored["metrics"], **lead}
            if self.scored["on"] == "test":
                record["test"] = {"metrics": measured}
            else:
                record["metrics"] = record["metrics"] | measured
        return record

    def write_report(self, record: dict[str, Any]) -> None:
        commands = [
            f"bedplate predict {word(self.out)}/model --file YOUR_ARTICLE.txt",
            f"bedplate evaluate {word(self.out)}/model --data YOUR_SUMMARIES.jsonl",
        ]
        write_report(self.out, record, self.timings, sections=summary_sections(self.scored), commands=commands)

    def _read(self, log: RunLog) -> None:
        """Read the documents, keep what is scored apart from what is trained on, tokenise, and say what was found."""
        data = self.recipe.data
        whole = read_summaries(data.path, data.document, data.summary)
        read = partial(read_summaries, document=whole.document, summary=whole.summary)
        apart = {name: read(path).rows for name, path in (("val", data.val_path), ("test", data.test_path)) if path}
        train, near = whole.rows, 0
        if "val" in apart and "test" in apart:  # what chooses the step must not be what is scored at the end
            apart["val"], near = without_near(apart["val"], apart["test"], "data.val_path")
        for rows in apart.values():
            train, found = without_near(train, rows, "data.path")
            near += found
        if "val" not in apart:
            train, held = hold_out(train, data.val_fraction, self.recipe.seed, "documents")
            if held:
                train, found = without_near(train, held, "data.path")
                near, apart = near + found, {"val": held, **apart}
        self.parts: dict[str, list[Summarized]] = {"train": train, **apart}
        self.examples: dict[str, list[Example]] = {}
        truncated = 0
        for name in ("train", "val"):
            if name in self.parts:
                self.examples[name], cut = encode_summaries(self.summaries, self.parts[name], self.length)
                truncated += cut
        self.form = self._form()
        self.found: dict[str, Any] = {
            "document": whole.document,
            "summary": whole.summary,
            **{name: len(rows) for name, rows in self.parts.items()},
            "near_duplicates": near,
            "truncated": truncated,
        }
        learnt = sum(int((targets >= 0).sum()) for _, targets in self.examples["train"])
        for line in said(self.found, learnt, self.length):
            log.say(line)

    def _form(self) -> SummaryForm:
        """How summaries are written: as the recipe says, and no longer than those that are learnt."""
        options = self.recipe.summary.model_dump()
        lengths = [int((targets >= 0).sum()) for _, targets in self.examples["train"]]
        usual = int(np.quantile(lengths, 0.99, method="higher"))
        limit = self.length * 3 // 4  # of a row: the rest is for the document
        most = options.pop("max_new_tokens") or min(usual, limit)
        if most > limit:
            raise InputError(
                f"summary.max_new_tokens={most} leaves less than a quarter of a row of {self.length} tokens to the "
                "document; give less, or a larger train.sequence_length"
            )
        if options["min_new_tokens"] > most:
            raise InputError(
                f"summary.min_new_tokens={options['min_new_tokens']} is more than summary.max_new_tokens, {most}"
            )
        return SummaryForm(CUE, self.length, most, **options)


def without_near(rows: list[Summarized], scored: Sequence[Summarized], key: str) -> tuple[list[Summarized], int]:
    """`rows` without those whose documents nearly repeat one that is scored, and their number."""
    found = set(near_duplicates([row.document for row in rows], [row.document for row in scored]).tolist())
    if len(found) == len(rows):
        raise InputError(f"{key}: all its documents are near-duplicates of those that are scored; give others")
    return [row for i, row in enumerate(rows) if i not in found], len(found)


def said(found: Mapping[str, Any], learnt: int, length: int) -> list[str]:
    """What was found in the examples, as sentences."""
    uses = {"val": "held out to choose the best step", "test": "to score once, at the end"}
    counts = "".join(f"; {found[name]:,} {use}" for name, use in uses.items() if name in found)
    lines = [
        f"Documents from column {found['document']!r}, summaries from {found['summary']!r}: {found['train']:,} to "
        f"train on, with {learnt:,} tokens of summaries{counts}."
    ]
    if found["near_duplicates"]:
        lines.append(f"{found['near_duplicates']:,} near-duplicates of documents that are scored were removed.")
    if found["truncated"]:
        lines.append(
            f"{found['truncated']:,} documents are longer than a row of {length} tokens and were cut at their end."
        )
    return lines
