"""What is right without looking: counted by hand, and against a search over all other rows."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from bedplate.metrics.blind import question_alone

ROWS = st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=12)


def most(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")


@given(ROWS)
def test_no_picture_s_answers_tell_about_its_own_questions(rows: list[tuple[str, str, int]]) -> None:
    questions, answers, owners = (list(part) for part in zip(*rows, strict=True))
    expected = []
    for question, _, owner in rows:
        others = [(q, a) for q, a, o in rows if o != owner]
        same = most(Counter(a for q, a in others if q == question))
        expected.append(same or most(Counter(a for _, a in others)))
    assert question_alone(questions, answers, owners) == expected


def test_what_was_learnt_is_all_that_is_known() -> None:
    learnt = [
        ("is it red?", "no"),
        ("is it red?", "no"),
        ("is it red?", "yes"),
        ("what is it?", "yes"),
        ("why?", "yes"),
    ]
    assert question_alone(["is it red?", "who?"], ["yes", "me"], [0, 0], learnt) == ["no", "yes"]
