import pytest

from bedplate.metrics.answers import answer_accuracy, normal_answer
from bedplate.metrics.proportion import share


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"), ("The red  cat!", "red cat"), ("two", "2"), ("a dog's", "dog's"), ("2.5", "2.5"),
        ("10:30 a.m.", "10:30 a.m"), ("an", "an"), ("T-shirt", "t-shirt"), ("", ""),
        ("-5", "-5"), ("−5", "-5"), ("+5.", "+5"), (".5", ".5"), ("-.5 m", "-.5 m"), ("...5", "5"), ("3-5", "3-5"),
        ("C++", "c++"), ("c#.", "c#"), ("किताब", "किताब"), ("cafe\u0301", "café"), ("A.", "a"), ("the a", "the a"),
        ("+", "+"), ("❤️", "❤️"), (" ?  ! ", "? !"), ("red_cat", "red cat"), (" ", ""),
        ("1,000", "1000"), ("1, 2", "1 2"), ("red,blue", "red blue"),
    ],
)  # fmt: skip
def test_answers_are_compared_in_one_form(answer: str, normal: str) -> None:
    assert normal_answer(answer) == normal == normal_answer(normal)


def test_accuracy_of_each_kind() -> None:
    said = ["Yes", "no", "two", "a red cat", "blue"]
    right = [["yes"], ["yes"], ["2", "3"], ["dog", "red cat"], ["green"]]
    found = answer_accuracy(said, right, ["b", "b", "n", "", "c"])
    assert list(found) == ["accuracy", "accuracy_b", "accuracy_c", "accuracy_n"]
    assert found["accuracy"] == share(3, 5) and found["accuracy_b"] == share(1, 2)
    assert found["accuracy_c"] == share(0, 1) and found["accuracy_n"] == share(1, 1)
    assert answer_accuracy(said, right) == {"accuracy": share(3, 5)}
    with pytest.raises(ValueError, match="for 5 questions"):
        answer_accuracy(said[1:], right)
    with pytest.raises(ValueError, match="nothing was scored"):
        answer_accuracy([], [])


def test_what_holds_no_word_is_only_equal_to_itself() -> None:
    assert answer_accuracy(["-", "😀", "b", ""], [["+"], ["❤️"], ["c"], ["a"]])["accuracy"]["value"] == 0
    assert (
        answer_accuracy(["+", "😀", "The", "c"], [["+"], ["😀"], ["the"], ["c++", "c#"]])["accuracy"]["value"] == 0.75
    )
