"""Names in any script are written, or numbered where no font has them: never drawn as empty boxes."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from bedplate.report import fonts
from bedplate.report.fonts import font_for, is_writable
from bedplate.report.pictures import draw_boxes, legend

BOX = [[100, 200, 500, 400]]


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with no font but Pillow's own."""
    fonts._fonts.cache_clear()
    monkeypatch.setattr(fonts, "FONTS", ())
    yield
    fonts._fonts.cache_clear()


def drawn(label: str) -> bytes:
    return draw_boxes(Image.new("RGB", (640, 480)), BOX, [label], names=["cat", label]).tobytes()


@pytest.mark.usefixtures("no_fonts")
def test_english_is_written_without_any_font() -> None:
    assert legend(["red cell", 'a "quoted" (name) 1-2', "two\nlines"]) == {}
    assert is_writable("abc … %", font_for([], 12))


@pytest.mark.usefixtures("no_fonts")
def test_what_no_font_has_is_drawn_as_its_number() -> None:
    assert legend(["cat", "赤血球", "лейкоцит"]) == {"赤血球": "#2", "лейкоцит": "#3"}
    assert drawn("赤血球") == drawn("лейкоцит") == drawn("#2") != drawn("#3")


def test_a_font_of_the_machine_is_taken_where_it_has_more() -> None:
    pytest.importorskip("matplotlib")  # brings DejaVu, which has Cyrillic
    assert legend(["cat", "лейкоцит", "café"]) == {}
    font = font_for(["лейкоцит"], 20)
    assert is_writable("лейкоцит", font) and not is_writable("\U0010fffe", font)
    assert not np.array_equal(np.frombuffer(drawn("лейкоцит"), np.uint8), np.frombuffer(drawn("лимфоцит"), np.uint8))


def test_the_font_that_has_the_most_is_chosen() -> None:
    """Of two fonts that both lack some, the one that lacks fewer."""
    pytest.importorskip("matplotlib")
    assert font_for(["лейкоцит 赤"], 20) is font_for(["лейкоцит"], 20)
    assert font_for(["cat"], 20) is font_for(["dog"], 20) is fonts._fonts(20)[0]
