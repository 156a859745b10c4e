"""Caption metrics: the BLEU paper's examples, a CIDEr-D by hand, and the figures of other implementations."""

import math
import random

import numpy as np
import pytest

from bedplate.metrics.captions import bleu, bleu_counts, cider_d, cider_scores, exact_match, words

# Papineni et al. 2002, section 2: two candidates and their three references.
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party.",
    "It is the practical guide for the army always to heed the directions of the party.",
]
CANDIDATE_1 = "It is a guide to action which ensures that the military always obeys the commands of the party."
CANDIDATE_2 = "It is to insure the troops forever hearing the activity guidebook that party direct."

PREDICTIONS = [
    "a cat sits on a mat",
    "two dogs run in the park",
    "a red bus on the street",
    "a man rides a horse on the beach",
]
WRITTEN = [
    ["a cat is sitting on a mat", "the cat sits on the mat"],
    ["two dogs are running in a park", "dogs run in the park"],
    ["a red bus drives down the street", "a bus on a city street"],
    ["a man riding a horse on a beach", "a man on a horse near the sea", "man rides horse"],
]


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("A man's T-shirt, size 3.5 -- (really?) 'quoted'…") == [
        *("a", "man's", "t-shirt", "size", "3.5", "really", "quoted")
    ]
    assert words("Zwölf_Füße!") == ["zwölf", "füße"] and words(" .,;") == []


# BLEU


def test_the_examples_of_the_bleu_paper() -> None:
    assert bleu_counts(CANDIDATE_1, REFERENCES)[:2] == ((17, 10, 7, 4), (18, 17, 16, 15))
    one, two = bleu_counts(CANDIDATE_1, REFERENCES), bleu_counts(CANDIDATE_2, REFERENCES)
    assert (one.matched[0], one.there[0]) == (17, 18) and (two.matched[0], two.there[0]) == (8, 14)
    assert (one.matched[1], one.there[1]) == (10, 17) and (two.matched[1], two.there[1]) == (1, 13)
    clipped = bleu_counts("the the the the the the the", ["The cat is on the mat.", "There is a cat on the mat."])
    assert (clipped.matched[0], clipped.there[0]) == (2, 7) and clipped.matched[1] == 0
    short = bleu_counts("of the", REFERENCES)
    assert (short.matched[:2], short.there) == ((2, 1), (2, 1, 0, 0))


def test_bleu_by_hand() -> None:
    # 6 of 8 words, 4 of 7 pairs, 2 of 6 triples, 1 of 5 fours; 8 words against 9.
    prediction, reference = "the cat sat on the mat all day", "the cat sat on a mat almost all day"
    counts = bleu_counts(prediction, [reference])
    assert counts == ((7, 4, 2, 1), (8, 7, 6, 5), 8, 9)
    expected = (7 / 8 * 4 / 7 * 2 / 6 * 1 / 5) ** 0.25 * math.exp(1 - 9 / 8)
    assert bleu([prediction], [[reference]])["value"] == pytest.approx(expected)
    assert bleu(["a b c d e"], [["a b c d e", "x"]])["value"] == pytest.approx(1)
    assert bleu(["a b c", ""], [["a b c"], ["d"]])["value"] == 0


def test_of_two_references_as_near_the_shorter_counts() -> None:
    assert bleu_counts("a b c", ["a b c d", "a b"]).reference == 2


def random_corpus(seed: int) -> tuple[list[str], list[list[str]]]:
    draw = random.Random(seed)
    vocabulary = ("a", "red", "cat", "sits")

    def text() -> str:
        return " ".join(draw.choice(vocabulary) for _ in range(draw.randint(4, 12)))

    return [text() for _ in range(30)], [[text() for _ in range(3)] for _ in range(30)]


@pytest.mark.parametrize("seed", range(5))
def test_bleu_is_that_of_other_implementations(seed: int) -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions, references = random_corpus(seed)
    ours = bleu(predictions, references)
    split = [[each.split() for each in several] for several in references]
    assert ours["value"] == pytest.approx(nltk.corpus_bleu(split, [each.split() for each in predictions]))
    theirs = sacrebleu.BLEU(smooth_method="none", tokenize="none").corpus_score(
        predictions, [list(column) for column in zip(*references, strict=True)]
    )
    assert 100 * ours["value"] == pytest.approx(theirs.score)
    assert ours["low"] <= ours["value"] <= ours["high"] and ours["n"] == 30


# CIDEr-D


def test_cider_d_by_hand() -> None:
    # Two pictures of one reference each. "a" is in both: its weight is log(2/2) = 0. All else is in one: log 2.
    predictions, references = ["a red red cat", "a dog"], [["a red cat"], ["a dog"]]
    # Words: (red 2, cat 1) against (red 1, cat 1): clipped 2, norms sqrt 5 and sqrt 2.
    # Pairs: (a red, red red, red cat) against (a red, red cat): clipped 2, norms sqrt 3 and sqrt 2.
    # Triples: (a red red, red red cat) share nothing with (a red cat); the reference has no fours.
    # "red red" and the triples are in no document: weight log(2 / max(1, 0)) = log 2, too.
    # Lengths differ by 1.
    first = 10 / 4 * (2 / math.sqrt(10) + 2 / math.sqrt(6)) * math.exp(-1 / (2 * 6**2))
    second = 10 / 4 * (1 + 1)  # dog, a dog; there are no triples and no fours
    assert cider_scores(predictions, references) == pytest.approx([first, second])
    assert cider_d(predictions, references)["value"] == pytest.approx((first + second) / 2)


def test_cider_d_is_that_of_coco_caption() -> None:
    # By PyPI pycocoevalcap 1.2, cider/cider_scorer.py and bleu/bleu_scorer.py (option "closest"), on these very words.
    scores = [3.6699993046827433, 5.404719855961623, 3.0162191471312614, 2.4924876407978083]
    assert cider_scores(PREDICTIONS, WRITTEN) == pytest.approx(scores, rel=1e-9)
    result = cider_d(PREDICTIONS, WRITTEN)
    assert result["value"] == pytest.approx(3.645856487143359, rel=1e-9) and result["n"] == 4
    assert result["low"] <= result["value"] <= result["high"]
    assert bleu(PREDICTIONS, WRITTEN)["value"] == pytest.approx(0.4617366309197576, abs=1e-9)


def test_properties_of_cider_d() -> None:
    references = [["a red cat on a mat"], ["two dogs in the park"], ["one bus by the sea"]]
    same = [several[0] for several in references]
    assert cider_scores(same, references) == pytest.approx([10] * 3)
    assert cider_scores(["nothing of it"] * 3, references) == pytest.approx([0] * 3)
    assert cider_scores(["", *same[1:]], references)[0] == 0
    assert cider_scores(same[:1], references[:1]) == pytest.approx([0])  # of one picture every word is in all
    order = [2, 0, 1]
    mixed = cider_scores([PREDICTIONS[i] for i in order], [WRITTEN[i] for i in order])
    picked = cider_scores(PREDICTIONS[:3], WRITTEN[:3])
    assert mixed == pytest.approx(picked[order])
    assert np.array_equal(
        cider_scores([each.upper() + "!" for each in PREDICTIONS], WRITTEN), cider_scores(PREDICTIONS, WRITTEN)
    )


def test_exact_match_compares_words() -> None:
    result = exact_match(["A cat.", "a dog", "cat a"], [["x", "a cat"], ["the dog"], ["a cat"]])
    assert result["value"] == pytest.approx(1 / 3) and result["n"] == 3


def test_captions_without_words_are_compared_as_they_are() -> None:
    assert exact_match(["...", "", "😀 ", "!"], [["😀"], ["?"], ["😀"], ["a", "! "]])["value"] == 0.5


@pytest.mark.parametrize("metric", [bleu, cider_d, exact_match])
def test_what_cannot_be_scored_is_told(metric) -> None:  # type: ignore[no-untyped-def]
    for predictions, references in ((["a"], []), ([], []), (["a"], [[]])):
        with pytest.raises(ValueError, match=r"captions|reference"):
            metric(predictions, references)
