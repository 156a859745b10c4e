"""Models of bedplate in lm-evaluation-harness (EleutherAI, `lm_eval` 0.4), and its tasks from a local folder."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bedplate.errors import InputError
from bedplate.hub.model import Model
from bedplate.hub.text import TextStream
from bedplate.measure.branches import Request
from bedplate.measure.likelihood import Scorer
from bedplate.metrics.proportion import Z, macro_average
from bedplate.models.sampling import generate

MAX_GEN_TOKS = 256  # where a task names no number, as in the harness's own models
RESAMPLES = 1000  # for errors of what is no mean, such as perplexity; as many as in our own intervals
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


class BedplateLM(LM):
    """A causal language model for `lm_eval.simple_evaluate(model=BedplateLM(model), ...)`.

    Texts are tokenised, split and cut as by the harness's own `hf` model, so that both give the same results on the
    same weights.

    Args:
        batch_size: prompts that are continued at one time; log-likelihoods choose theirs themselves.
    """

    def __init__(self, model: Model, batch_size: int = 16) -> None:
        super().__init__()
        self._model, self._scorer, self._batch_size = model, Scorer(model, "causal"), batch_size

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether it is the greedy continuation) of (context, continuation) pairs."""
        # The requests of a document begin alike: its choices share their question.
        by_document = [list(group) for _, group in groupby(requests, lambda r: (r.task_name, r.doc_id))]
        scores = self._scorer.score([[self._scorer.encode(*r.args) for r in group] for group in by_document])
        results = [(score.log_likelihood, score.greedy) for group in scores for score in group]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of whole texts; a longer one than the model's context is read in windows."""
        windows = [[Request(*window) for window in self._windows(*request.args)] for request in requests]
        scores = iter(self._scorer.score([[window] for text in windows for window in text]))
        results = [sum(score.log_likelihood for _ in text for score in next(scores)) for text in windows]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return results

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations of prompts, each cut before the first of its stop strings."""
        results = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (repr(requests[i].args[1]), len(requests[i].args[0])))
        for _, same in groupby(order, lambda i: repr(requests[i].args[1])):
            numbers = list(same)
            for start in range(0, len(numbers), self._batch_size):
                batch = numbers[start : start + self._batch_size]
                options = requests[batch[0]].args[1]
                texts = self._continued([requests[i].args[0] for i in batch], options)
                for i, text in zip(batch, texts, strict=True):
                    results[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return results

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        ids = self._scorer.ids(text)
        rolling = get_rolling_token_windows(ids, self._scorer.start, max_seq_len=self._scorer.context, context_len=1)
        return [make_disjoint_window(window) for window in rolling]

    def _continued(self, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        settings = normalize_gen_kwargs(dict(options), MAX_GEN_TOKS)
        until, new, sample = (settings.pop(key, None) for key in ("until", "max_gen_toks", "do_sample"))
        stops = [stop for stop in [until] if isinstance(stop, str)] or [stop for stop in until or () if stop]
        unknown = sorted(set(settings) - set(SAMPLING))
        if unknown:
            raise InputError(f"a task's generation_kwargs has {unknown[0]}; known are {', '.join(SAMPLING)}, until")
        if not sample:
            settings["temperature"] = 0.0
        room = self._scorer.context - new
        if room < 1:
            raise InputError(
                f"a task asks for {new} new tokens, which leave no room for a prompt in the model's context of "
                f"{self._scorer.context}; lower its max_gen_toks"
            )
        rows = [self._scorer.ids(prompt)[-room:] or [self._scorer.start] for prompt in prompts]
        tokenizer, module = self._scorer.tokenizer, self._model.need_language_model()
        texts = [TextStream(tokenizer, [], stops) for _ in rows]

        def on_token(row: int, token: int) -> bool:
            texts[row].add(token)
            return texts[row].stopped

        eos = self._model.special.eos
        generate(module, rows, max_new_tokens=new, stop_ids=eos, seed=0, on_token=on_token, **settings)
        for text in texts:
            text.finish()
        return [text.text for text in texts]


@contextmanager
def _in_this_process() -> Iterator[None]:
    """Keep the harness from forking for its bootstrap: a forked copy of a process with threads may hang for good."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def run_harness(model: Model, folder: str | Path, tasks: Sequence[str], *, limit: int | None = None) -> dict[str, Any]:
    """Run tasks that yaml files in a folder define; nothing is taken from elsewhere.

    A task definition may name Python functions beside it, which the harness runs: use folders that you trust.

    Returns:
        {"n", "metrics": {"accuracy": mean of `acc` over the tasks that have it}, "tasks": {name: {"n", "kind",
        "chance": None, "hash": of documents, prompts and targets, "metrics"}}, "limit"}. Intervals are the value and
        1.96 standard errors on either side as the harness gives them, None where it gives none.

    Raises:
        InputError: no such folder, or a task that is not in it.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} must be 1 or more rows of each task")
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; give one of yaml task definitions")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    known = ", ".join(sorted(manager.all_tasks)) or "none"
    if not tasks:
        raise InputError(f"name the tasks to run; {folder} defines {known}")
    for name in tasks:
        if name not in manager.all_tasks:
            raise InputError(f"{folder}: no task {name!r}; it defines {known}")
    with redirect_stdout(sys.stderr), _in_this_process():  # what it prints is no result
        try:
            found = lm_eval.simple_evaluate(
                BedplateLM(model), tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=RESAMPLES
            )
        except FileNotFoundError as error:
            raise InputError(f"{folder}: a task's data is not there ({error}); paths are from {Path.cwd()}") from error
    assert found is not None, "only other ranks get nothing"
    results = {name: _task(name, found) for name in found["samples"]}
    accuracies = [task["metrics"]["acc"] for task in results.values() if "acc" in task["metrics"]]
    return {
        "n": sum(task["n"] for task in results.values()),
        "metrics": {"accuracy": _mean(accuracies)} if accuracies else {},
        "tasks": results,
        "limit": limit,
    }


def _mean(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Their macro average; without an interval, where one of them has none."""
    if all(score["low"] is not None for score in scores):
        return macro_average(scores)
    n, values = sum(score["n"] for score in scores), [score["value"] for score in scores]
    return {"value": sum(values) / len(values), "low": None, "high": None, "n": n}


def _task(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    digest = hashlib.blake2b(digest_size=16)
    for sample in {sample["doc_id"]: sample for sample in samples}.values():
        digest.update("".join(sample[key] for key in ("doc_hash", "prompt_hash", "target_hash")).encode())
    n, values = found["n-samples"][name]["effective"], found["results"][name]
    metrics = {}
    for key, value in values.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kept}")
        half = Z * error if isinstance(error, int | float) else None
        ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
        metrics[metric if kept == "none" else key] = {"value": float(value), **ends, "n": n}
    kind = found["configs"][name]["output_type"]
    return {"n": n, "kind": kind, "chance": None, "hash": digest.hexdigest(), "metrics": metrics}
