"""A font for names in any script: Pillow's own holds little but English, and none is shipped here."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf"),  # Latin, Greek, Cyrillic and more
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "Hiragino Sans GB.ttc", "msyh.ttc"),  # Chinese, Japanese, Korean
)
"""Files that Pillow looks for where Linux, macOS and Windows keep fonts; matplotlib brings the first one."""
UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf", "Mn", "Mc", "Me")  # spaces, signs for the writer, marks on other characters
NOWHERE = "\U0010ffff"  # no character, so that any font draws it as what is missing


def font_for(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font if it has all characters of the texts, else the one of this machine that has the most."""
    wanted = set("".join(texts))
    return max(_fonts(size), key=lambda font: sum(_has(font, character) for character in wanted))


def is_writable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bool:
    """Whether the font has all characters of a text."""
    return all(_has(font, character) for character in set(text))


@lru_cache(maxsize=8)
def _fonts(size: int) -> list[ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    found: list[ImageFont.FreeTypeFont | ImageFont.ImageFont] = [ImageFont.load_default(size)]
    plots = find_spec("matplotlib")
    beside = [] if plots is None else [Path(f) / "mpl-data/fonts/ttf" for f in plots.submodule_search_locations or ()]
    for name in FONTS:
        for file in (name, *(str(folder / name) for folder in beside)):
            try:
                found.append(ImageFont.truetype(file, size))
                break
            except OSError:  # not on this machine
                continue
    return found


def _has(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, character: str) -> bool:
    if unicodedata.category(character) in UNSEEN:
        return True
    drawn, missing = (font.getmask(each) for each in (character, NOWHERE))
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
