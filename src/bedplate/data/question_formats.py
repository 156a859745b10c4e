"""How tables, easy-vqa and VQA v2 say which questions are about which picture; captions are read as pairs."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bedplate.data import sources
from bedplate.data.formats import ROWS, missing_column
from bedplate.data.image_files import files_below, is_picture, only_train
from bedplate.data.image_refs import ImageRef, Spool
from bedplate.data.image_tables import first_rows, picture_column, picture_key, readable_at_random, row_picture
from bedplate.data.labels import first_named, how_to_name, listed
from bedplate.data.pairs import TEXT_NAMES, read_pairs
from bedplate.data.questions import Asked, Question, captions
from bedplate.errors import InputError

# Names under which published data sets keep questions, answers and their kinds, the clearest first.
QUESTION_NAMES = ("question", "questions", "query", "question_text", "prompt", "sent")
ANSWER_NAMES = ("multiple_choice_answer", "answer", "answers", "label", "response", "target")
KIND_NAMES = ("kind", "question_type", "answer_type", "type", "category")
UNASKED, UNANSWERED, NO_PICTURE = "rows without a question", "questions without an answer", "rows without a picture"
AGREE = 3
"""People of ten who must agree for an answer to count as right in full (Antol et al. 2015, arXiv 1505.00468)."""
EASY_VQA = "questions.json"
WANTED = (
    "give a table with columns of pictures, questions and answers, a folder of easy-vqa (images/, questions.json), "
    "or VQA v2's ..._questions.json beside its ..._annotations.json"
)


class Columns(NamedTuple):
    """The columns that the user named; None where they are to be guessed."""

    image: str | None
    question: str | None
    answer: str | None
    kind: str | None


class _Found:
    """Questions as they are read, joined by their picture."""

    def __init__(self) -> None:
        self._images: dict[Hashable, ImageRef | int] = {}  # a number is one of the spool
        self._questions: dict[Hashable, list[Question]] = {}
        self.dropped = Counter[str]()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._images

    def add(self, key: Hashable, image: ImageRef | int, question: Question) -> None:
        self._images.setdefault(key, image)
        self._questions.setdefault(key, []).append(question)

    def asked(self, spool: Spool | None = None) -> Asked:
        spooled = any(isinstance(ref, int) for ref in self._images.values())
        kept = spool.close() if spool is not None and spooled else []
        images = [kept[ref] if isinstance(ref, int) else ref for ref in self._images.values()]
        return Asked(images, [tuple(each) for each in self._questions.values()], dict(self.dropped))


def read_folder(root: Path, columns: Columns) -> list[Asked]:
    """The questions of a folder of one of the known forms."""
    dropped = Counter[str]()
    files = files_below(root, dropped)
    for chosen in (
        [file for file in files if os.path.basename(file) == EASY_VQA],
        [file for file in files if re.fullmatch(r".*questions\.json", file, re.IGNORECASE)],
        [file for file in files if re.fullmatch(r"(questions|captions)\.\w+", os.path.basename(file)) and _rows(file)],
        [file for file in files if _rows(file)],
    ):
        if chosen:
            parts = [read_file(str(root / file), columns) for file in only_train(chosen, dropped)]
            return [*parts, Asked([], [], dict(dropped))]
    if not files:
        raise InputError(f"{root}: no questions in this folder; {WANTED}")
    return [_read_captions(str(root), columns)]


def read_file(name: str, columns: Columns) -> Asked:
    """The questions of a table or archive (a file of this machine, a URL or an `hf:` id), or of a .json."""
    if (sources.kind_of(name) or ("",))[0] == "tar":
        return _read_captions(name, columns)
    if not name.lower().endswith(".json"):
        return _read_table(name, columns)
    content = _json(Path(name))
    if isinstance(content, list):
        return _read_easy(Path(name), content)
    if isinstance(content, dict) and isinstance(content.get("questions"), list):
        return _read_vqa(Path(name), content)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return _read_captions(name, columns)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        questions = _partner(Path(name), "questions")
        return _read_vqa(questions, _json(questions))
    raise InputError(f"{name}: no questions of a known form; {WANTED}")


def _rows(name: str) -> bool:
    return (sources.kind_of(name) or ("",))[0] in ROWS


def _read_captions(name: str, columns: Columns) -> Asked:
    return captions(read_pairs(name, columns.image, columns.answer, key="data.answer"))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{file}: this is no JSON ({error}); mend the file") from None


# Tables


def _read_table(name: str, columns: Columns) -> Asked:
    if Path(name).stem == "captions":
        columns = columns._replace(question=None, answer=None, kind=None)  # what is named is of the questions beside
    guessed = _guessed(name, columns)
    if guessed is None:
        return _read_captions(name, columns)
    image, question, answer, kind = guessed
    found, in_place = _Found(), readable_at_random(name, image)
    with Spool(name) as spool:
        for number, (source, row) in enumerate(sources.rows(name)):
            for column in (image, question, answer):
                if column not in row:
                    raise missing_column(source, column, row)
            key = picture_key(row[image])
            text = _text(row[question], source, question)
            answers = _answers(row[answer], source, answer)
            reason = NO_PICTURE if key is None else UNASKED if not text else UNANSWERED if not answers else None
            if reason:
                found.dropped[reason] += 1
                continue
            said = _text(row.get(kind), source, kind) if kind else ""
            ref: ImageRef | int | None
            if key in found:
                ref = 0  # there already
            elif in_place:
                ref = ImageRef(f"{name}:{number + 1}", name, "parquet", number, column=image)
            else:
                ref = row_picture(row[image], source, image, name, spool)
            assert ref is not None
            found.add(key, ref, Question(text, answers, said or kind_by(answers[0])))
        return found.asked(spool)


def _guessed(name: str, columns: Columns) -> tuple[str, str, str, str | None] | None:
    """The columns by the first rows; None where there is no question, but a text or an answer."""
    rows = first_rows(name)
    present = list(dict.fromkeys(key for row in rows for key in row))
    for wanted in columns:
        if wanted and wanted not in present:
            raise missing_column(name, wanted, present)
    image = picture_column(name, rows, columns.image, [each for each in columns[1:] if each])
    question = columns.question or first_named(
        QUESTION_NAMES, [each for each in present if each != columns.answer], image
    )
    answer = columns.answer or first_named(ANSWER_NAMES, [each for each in present if each != question], image)
    if question is None and (columns.answer or first_named(TEXT_NAMES, present, image)):
        return None
    for key, column in (("question", question), ("answer", answer)):
        if column is None:
            raise InputError(
                f"{name}: it is not clear which column holds the {key}s: present are {listed(present)}; "
                f"{how_to_name(key)}"
            )
    assert question and answer
    others = [each for each in present if each not in (question, answer)]
    return image, question, answer, columns.kind or first_named(KIND_NAMES, others, image)


def _text(value: object, source: str, column: str) -> str:
    """A question, an answer or a kind as one line of text; "" where there is none."""
    if value is None or value != value:  # NaN: a missing value, as pandas writes it
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return " ".join(sources.checked_text(source, column, value).split())


def _answers(value: object, source: str, column: str) -> tuple[str, ...]:
    """The answers of a value: a text, a number, a list of these, or VQA's list of {"answer": ...}."""
    if not isinstance(value, list | tuple):
        text = _text(value, source, column)
        return (text,) if text else ()
    if any(isinstance(each, dict) for each in value):
        return _agreed([_text(each.get("answer"), source, column) for each in value if isinstance(each, dict)])
    return tuple(dict.fromkeys(text for each in value if (text := _text(each, source, column))))


def _agreed(given: Sequence[str], learnt: str = "") -> tuple[str, ...]:
    """The answer that is learnt (the most frequent where nobody says), then those on which enough people agree."""
    counts = Counter(text for text in given if text).most_common()
    right = [text for text, count in counts if count >= AGREE]
    first = learnt or next((text for text, _ in counts), "")
    return tuple(dict.fromkeys([first, *right])) if first else ()


def kind_by(answer: str) -> str:
    """What VQA v2 calls the type of an answer: "yes_no", "number" or "other"."""
    if answer.strip().lower() in ("yes", "no"):
        return "yes_no"
    return "number" if re.fullmatch(r"[+-]?\d+(\.\d+)?", answer.strip()) else "other"


# easy-vqa


def _read_easy(file: Path, rows: Sequence[Any]) -> Asked:
    """The layout of https://github.com/vzhou842/easy-VQA: [question, answer, number of the picture]."""
    folder = file.parent / "images"
    pictures = {path.stem: path for path in _pictures(folder if folder.is_dir() else file.parent)}
    found = _Found()
    for number, row in enumerate(rows):
        where = f"{file}: entry {number}"
        if not isinstance(row, list) or len(row) != 3 or not isinstance(row[2], int | str):
            raise InputError(f"{where} is not [question, answer, number of the picture]; {WANTED}")
        path = pictures.get(str(row[2]))
        if path is None:
            raise InputError(f"{where} is about picture {row[2]}, which is not in {folder}; put it there")
        text, answers = _text(row[0], where, "question"), _answers(row[1], where, "answer")
        _add(found, path, text, answers, "")
    return found.asked()


def _add(found: _Found, path: Path, text: str, answers: tuple[str, ...], kind: str) -> None:
    """Take the question, or count why not."""
    if not text or not answers:
        found.dropped[UNANSWERED if text else UNASKED] += 1
    else:
        found.add(str(path), ImageRef(str(path), str(path)), Question(text, answers, kind or kind_by(answers[0])))


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and below, sorted."""
    return [folder / file for file in files_below(folder, Counter()) if is_picture(file)]


# VQA v2


def _read_vqa(file: Path, content: Any) -> Asked:
    """The format of https://visualqa.org/vqa_v2_teaser.html: questions in one file, answers in another."""
    questions = content.get("questions") if isinstance(content, dict) else None
    partner = _partner(file, "annotations")
    annotations = _json(partner)
    answered = annotations.get("annotations") if isinstance(annotations, dict) else None
    if not isinstance(questions, list) or not isinstance(answered, list):
        raise InputError(f"{file} and {partner}: no lists 'questions' and 'annotations'; {WANTED}")
    said = {
        _id(each["question_id"], f"{partner}: annotation number {number}: question_id"): each
        for number, each in enumerate(answered)
        if isinstance(each, dict) and "question_id" in each
    }
    pictures = _numbered(file, str(content.get("data_subtype", "")))
    found = _Found()
    for number, row in enumerate(questions):
        if not isinstance(row, dict) or any(key not in row for key in ("question_id", "image_id", "question")):
            raise InputError(f"{file}: question number {number} needs question_id, image_id and question; mend it")
        where = f"{file}: question {row['question_id']}"
        path = pictures.get(_id(row["image_id"], f"{where}: image_id"))
        if path is None:
            raise InputError(f"{where} is about picture {row['image_id']}, which is not in {file.parent}; put it there")
        annotation = said.get(_id(row["question_id"], f"{where}: question_id"), {})
        kind = _text(annotation.get("answer_type"), where, "answer_type")
        _add(found, path, _text(row["question"], where, "question"), _annotated(annotation, where), kind)
    return found.asked()


def _id(value: Any, where: str) -> int:
    """A number that things are called by, also as a string of digits.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where} is {str(value)[:40]!r}; give a whole number")
    return value


def _annotated(annotation: Mapping[str, Any], where: str) -> tuple[str, ...]:
    answers = annotation.get("answers") or []
    if not isinstance(answers, list) or not all(isinstance(each, dict) for each in answers):
        raise InputError(f"{where}: 'answers' is no list of {{'answer': words}}; mend it, or leave it out")
    given = [_text(each.get("answer"), where, "answer") for each in answers]
    return _agreed(given, _text(annotation.get("multiple_choice_answer"), where, "multiple_choice_answer"))


def _partner(file: Path, what: str) -> Path:
    """The file of annotations that belongs to one of questions, or the other way round."""

    def bare(name: str) -> str:
        return re.sub(r"questions|annotations|openended|multiplechoice|[^a-z0-9]", "", name.lower())

    there = sorted(each for each in file.parent.glob("*.json") if what in each.name.lower() and each != file)
    named = [each for each in there if bare(each.name) == bare(file.name)] or there
    if len(named) != 1:
        problem = "there is none" if not named else f"there are {len(named)}"
        raise InputError(f"{file}: it needs its file of {what} (VQA v2's ..._{what}.json) beside it; {problem}")
    return named[0]


def _numbered(file: Path, part: str) -> dict[int, Path]:
    """The pictures in and below the folder by the number that ends their names, those of a part's folder first."""
    root = file.parent.parent if file.parent.name.lower() in ("annotations", "questions") else file.parent
    found: dict[int, Path] = {}
    for path in sorted(_pictures(root), key=lambda path: (part not in path.parts, path)):
        if digits := re.search(r"(\d+)$", path.stem):
            found.setdefault(int(digits[1]), path)
    return found
