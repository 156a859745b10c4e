"""ROUGE: the figures of `rouge-score`, intervals over texts, and the first sentence as a baseline."""

import sys

import numpy as np
import pytest

from bedplate.metrics.rouge import lead, rouge, rouge_scores

TEXTS = ["the cat sat on the mat", "a dog barks", "nothing in common", "it rains again today"]
REFERENCES = [
    ["the cat was on the mat", "a cat sat"],
    ["a dog barks loudly", "dogs bark", "a dog barks"],
    ["xyz"],
    ["today it rains again", "it rains"],
]


def test_scores_are_those_of_the_library_with_the_best_reference() -> None:
    scorers = pytest.importorskip("rouge_score.rouge_scorer")
    scores = rouge_scores(TEXTS, REFERENCES)
    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = scorers.RougeScorer([name])
        best = [
            max(scorer.score(reference, text)[name].fmeasure for reference in several)
            for text, several in zip(TEXTS, REFERENCES, strict=True)
        ]
        assert scores[name].tolist() == best
    assert scores["rougeL"][1] == 1 and scores["rouge1"][2] == 0


def test_intervals_hold_the_mean_and_narrow_with_more_texts() -> None:
    pytest.importorskip("rouge_score")
    few, many = rouge(TEXTS, REFERENCES), rouge(TEXTS * 30, REFERENCES * 30)
    for name, metric in few.items():
        assert metric["value"] == pytest.approx(np.mean(rouge_scores(TEXTS, REFERENCES)[name]))
        assert metric["low"] <= metric["value"] <= metric["high"] and metric["n"] == 4
        assert many[name]["value"] == pytest.approx(metric["value"])
        assert many[name]["high"] - many[name]["low"] < (metric["high"] - metric["low"]) / 3
    assert rouge(TEXTS, REFERENCES) == few, "the same seed draws the same interval"


def test_texts_and_references_belong_together() -> None:
    with pytest.raises(ValueError, match="3 predictions for the references of 4 texts"):
        rouge_scores(TEXTS[:3], REFERENCES)


def test_a_missing_library_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(ImportError, match=r"pip install 'bedplate\[eval\]'"):
        rouge(TEXTS, REFERENCES)


@pytest.mark.parametrize(
    ("document", "first"),
    [
        ("One sentence. Another one.", "One sentence."),
        ("It is 3.5 metres, e.g. long. Then more.", "It is 3.5 metres, e.g. long."),
        ("A line that\ngoes on. Next.", "A line that\ngoes on."),
        ('He said "Stop." Then he went.', 'He said "Stop.'),
        ("A heading\n\nThe text.", "A heading"),
        ("  no end at all ", "no end at all"),
        ("第一句。第二句。", "第一句。"),
    ],
)
def test_the_first_sentence(document: str, first: str) -> None:
    assert lead(document) == first


def test_other_scripts_have_words_too() -> None:
    pytest.importorskip("rouge_score")
    russian = rouge_scores(["кошка сидела на ковре"], [["кошка лежала на ковре"]])
    assert russian["rouge1"][0] == pytest.approx(0.75) and russian["rougeL"][0] == pytest.approx(0.75)
    assert rouge_scores(["今天下雨"], [["今天下雪"]])["rouge1"][0] == pytest.approx(0.75)
    assert lead("Это первое. Это второе.") == "Это первое." and lead("So geht es. Ärger folgt.") == "So geht es."
    assert lead("It rained in Rome.\n\n12 people were hurt. Then more.") == "It rained in Rome."
    hindi = rouge_scores(["हिन्दी में लिखा"], [["हिन्दी और उर्दू"]])
    assert hindi["rouge1"][0] == pytest.approx(1 / 3)
    assert lead("It cost 3. 5 of them e.g. this one. Then more.") == "It cost 3. 5 of them e.g. this one."
    assert lead("Dr. Smith went home (cf. Jones). He slept.") == "Dr. Smith went home (cf. Jones)."
