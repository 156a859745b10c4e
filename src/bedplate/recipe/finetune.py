"""What a recipe of fine-tuning may say."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from bedplate.recipe.schema import (
    Count,
    LoopRecipe,
    Number,
    OptimizerRecipe,
    Paths,
    Positive,
    Rate,
    RunRecipe,
    Share,
    Strict,
)


class FinetuneModelRecipe(Strict):
    """What changes in the pre-trained network."""

    dropout: Share = 0.1
    """dropout on embeddings, attention and residual branches"""
    pooling: Literal["last", "mean", "cls"] | None = None
    """classify: what is scored: a text's `last` token, the `mean` over its tokens, or an encoder's first token, `cls`
    (default: last, of an encoder cls, as `transformers` has it)"""
    attention: Literal["base", "causal", "bidirectional"] = "base"
    """classify: what a token sees: `causal`, the text before it; `bidirectional`, all of it; `base`, as in the base"""


class AdapterRecipe(Strict):
    """Matrices of low rank that are trained beside the frozen network (LoRA, arXiv 2106.09685)."""

    rank: Count | None = None
    """rank of the matrices (null or 0: no adapter, all weights are trained)"""
    alpha: Rate | None = None
    """their product counts alpha / rank times (default: 2 rank)"""
    targets: list[str] | None = None
    """linear layers, as `transformers` names them: q_proj, mlp.down_proj, c_attn, ... (default: all of the blocks)"""
    dropout: Share = 0.0
    """dropout on what enters the matrices"""

    @field_validator("targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_whole(self) -> AdapterRecipe:
        if self.targets is not None and not self.targets:
            raise ValueError("adapter.targets names no layer; leave it out for all linear layers of the blocks")
        if not self.rank and (self.alpha, self.targets, self.dropout) != (None, None, 0):
            raise ValueError("adapter has settings and no rank; give adapter.rank, 8 for example, or leave them out")
        return self


class TeacherRecipe(Strict):
    """classify: a larger classifier, whose word on each text is learnt beside the labels (distillation)."""

    model: str | None = None
    """a classifier of the same labels, of any family: a model directory, a run directory, zoo:NAME or hf:ORG/NAME"""
    path: Paths | None = None
    """texts without labels, on which its word is all there is: what `data.path` takes. Epochs are passes over all"""
    column: str | None = None
    """the column of these texts (default: that of the labelled ones)"""
    weight: Annotated[float, Field(ge=0, le=1), Number] = 0.5
    """what its word counts on texts with labels; the label counts the rest"""

    @model_validator(mode="after")
    def _is_whole(self) -> TeacherRecipe:
        if self.model is None and (self.path, self.column, self.weight) != (None, None, 0.5):
            raise ValueError("teacher has settings and no model; give teacher.model, or leave them out")
        if self.column is not None and self.path is None:
            raise ValueError("teacher.column names a column of teacher.path, which is not given")
        return self


class FinetuneDataRecipe(Strict):
    """Examples: where they are, and which are held out."""

    path: Paths
    """files, folders, globs or hf:org/name with rows: csv, tsv, jsonl, parquet; a string or a list"""
    column: str | None = None
    """classify: the column of the text (default: guessed, and printed)"""
    label: str | None = None
    """classify: the column of the label (default: guessed, and printed)"""
    prompt: str | None = None
    """chat: the column of the prompt, where its name is not a usual one; needs `response`"""
    response: str | None = None
    """chat: the column of the response"""
    document: str | None = None
    """summarize: the column of the document (default: guessed, and printed)"""
    summary: str | None = None
    """summarize: the column of the summary, a string or a list of them (default: guessed, and printed)"""
    val_path: Paths | None = None
    """examples for early stopping; without it val_fraction is held out"""
    val_fraction: Share = 0.1
    """share of examples held out for early stopping, of each class alike"""
    test_path: Paths | None = None
    """classify, summarize: examples that are scored once, at the end; near-duplicates of them are not trained on"""
    max_tokens: Positive | None = None
    """classify: use a text's first so many tokens, an encoder's [CLS] and [SEP] counted (default: all, in windows of
    train.sequence_length)"""


class FinetuneTrainRecipe(LoopRecipe):
    """The loop of fine-tuning: it ends with `steps` or with `epochs`, whichever is first."""

    steps: Positive | None = None
    """optimizer steps (default: as many as `epochs` are)"""
    epochs: Rate | None = 4.0
    """passes over the examples"""
    batch_size: Positive = 16
    """examples a step (chat, summarize: rows of packed examples)"""
    sequence_length: Positive | None = None
    """tokens a row (default: the base's context, at most 256; summarize: at most 512)"""


class FinetuneOptimizerRecipe(OptimizerRecipe):
    """How weights follow gradients: AdamW, since Muon's products cost more than small batches themselves."""

    name: Literal["muon", "adamw"] = "adamw"
    """muon: Muon on the matrices of blocks and the filters of stems, AdamW on the rest; adamw: AdamW on everything"""
    learning_rate: Rate = 5e-4
    """AdamW's peak learning rate; for networks of 100M weights and more, a tenth of it"""
    muon_learning_rate: Rate = 5e-3
    """Muon's peak learning rate"""


class FinetuneEvaluateRecipe(Strict):
    """What is measured on held-out examples while training."""

    every: Positive | None = None
    """steps between evaluations (default: an epoch)"""
    metric: str | None = None
    """the metric whose best checkpoint is kept (default: accuracy, or bits_per_byte of the responses or summaries)"""
    patience: Positive | None = 3
    """evaluations without a better value after which training stops (null: never)"""
    prompts: list[str] = Field(default_factory=list)
    """chat: user messages that are answered at each evaluation"""
    sample_tokens: Positive = 64
    """chat, summarize: tokens of each answer"""


class SummaryRecipe(Strict):
    """summarize: how summaries are written, when they are scored and by `predict` where nothing else is said."""

    num_beams: Positive = 4
    """beams of the search (1: the likeliest token each time)"""
    length_penalty: float = 1.0
    """above 0 favours long summaries, below 0 short ones"""
    no_repeat_ngram_size: Count = 3
    """no n-gram of this many tokens stands twice in a summary (0: any may)"""
    min_new_tokens: Count = 0
    """tokens of a summary at least"""
    max_new_tokens: Positive | None = None
    """tokens of a summary at most (default: what 99 % of those to train on need)"""


class FinetuneRecipe(RunRecipe):
    """Fine-tuning of a pre-trained model."""

    task: Literal["classify", "chat", "summarize"] = "classify"
    """what is learnt: `classify`, the label of a text; `chat`, the responses to prompts; `summarize`, summaries"""
    base: str
    """the pre-trained model: a model directory, a run directory, zoo:NAME or hf:ORG/NAME"""
    model: FinetuneModelRecipe = Field(default_factory=FinetuneModelRecipe)
    adapter: AdapterRecipe = Field(default_factory=AdapterRecipe)
    teacher: TeacherRecipe = Field(default_factory=TeacherRecipe)
    data: FinetuneDataRecipe
    train: FinetuneTrainRecipe = Field(default_factory=FinetuneTrainRecipe)
    optimizer: FinetuneOptimizerRecipe = Field(default_factory=FinetuneOptimizerRecipe)
    evaluate: FinetuneEvaluateRecipe = Field(default_factory=FinetuneEvaluateRecipe)
    summary: SummaryRecipe = Field(default_factory=SummaryRecipe)

    @model_validator(mode="after")
    def _agrees(self) -> FinetuneRecipe:
        if self.train.steps is None and self.train.epochs is None:
            raise ValueError("train.steps and train.epochs are both null; give one of them")
        if self.teacher.model is not None and self.task != "classify":
            raise ValueError(f"teacher is for task: classify, not for {self.task}")
        if self.task == "classify" and (self.data.prompt or self.data.response):
            raise ValueError(
                "data.prompt and data.response are for task: chat; a classifier has data.column and data.label"
            )
        if self.task == "classify" and self.evaluate.prompts:
            raise ValueError("evaluate.prompts is for task: chat; a classifier writes nothing")
        if self.task == "chat":
            for key in ("column", "label", "test_path", "max_tokens"):
                if getattr(self.data, key) is not None:
                    raise ValueError(f"data.{key} is for task: classify, not for chat")
            if self.model.pooling is not None or self.model.attention != "base":
                raise ValueError("model.pooling and model.attention are for task: classify, not for chat")
        if self.task == "summarize":
            for key in ("column", "label", "prompt", "response", "max_tokens"):
                if getattr(self.data, key) is not None:
                    raise ValueError(f"data.{key} is not for task: summarize, which has data.document and data.summary")
            if self.model.pooling is not None or self.model.attention != "base":
                raise ValueError("model.pooling and model.attention are for task: classify, not for summarize")
            if self.evaluate.prompts:
                raise ValueError("evaluate.prompts is for task: chat; a held-out document is summarised in its place")
        elif self.data.document or self.data.summary or self.summary != SummaryRecipe():
            raise ValueError(f"data.document, data.summary and summary are for task: summarize, not for {self.task}")
        return self
