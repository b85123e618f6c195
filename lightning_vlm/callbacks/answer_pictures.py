"""Pictures in a terminal: as such where it is known to show them, else as coloured half blocks."""

import base64
import io
import os
from collections.abc import Mapping

import PIL.Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROWS, COLUMNS = 12, 40
"""How many lines and columns a picture has at most."""
_CELL = (10, 20)
"""Pixels of a cell of the terminal, about."""
_SIXEL = ("foot", "foot-extra", "mlterm", "contour", "yaft-256color")
_ITERM = ("iTerm.app", "WezTerm")
_CHUNK = 4096


def way_of(environment: Mapping[str, str], is_terminal: bool, colours: str | None) -> str | None:
    """How a terminal shows pictures: `kitty`, `iterm`, `sixel`, `blocks`, or None for not at all.

    Nothing is asked of the terminal, since its reply might end up in what a person types. Multiplexers don't
    pass pictures on.

    Args:
        environment: Variables of the process.
        is_terminal: Whether there is one.
        colours: How many it has, as of `rich`.

    >>> way_of({"TERM": "xterm-kitty"}, True, "truecolor"), way_of({}, False, None)
    ('kitty', None)
    """
    if not is_terminal or colours not in ("truecolor", "256"):
        return None
    term = environment.get("TERM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("screen", "tmux")):
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if environment.get("TERM_PROGRAM") in _ITERM or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "sixel" if term in _SIXEL else "blocks"


def show_picture(picture: PIL.Image.Image, console: Console) -> None:
    """Print a picture, if there is a terminal that can show it.

    Args:
        picture: In mode RGB.
        console: Where it goes.
    """
    colours = None if console.no_color or console.is_dumb_terminal else console.color_system
    way = way_of(os.environ, console.is_terminal, colours)
    if way == "blocks":
        console.print(half_blocks(picture, min(COLUMNS, console.width)))
    elif way is not None:
        small = picture.copy()
        small.thumbnail((COLUMNS * _CELL[0], ROWS * _CELL[1]))
        encode = {"kitty": kitty, "iterm": iterm, "sixel": sixel}[way]
        console.file.write(encode(small) + "\n")
        console.file.flush()


def half_blocks(picture: PIL.Image.Image, columns: int = COLUMNS, rows: int = ROWS) -> Text:
    """A small rendering: each character is two pixels, one above the other.

    >>> print(half_blocks(PIL.Image.new("RGB", (80, 40), "red"), columns=4))
    ▀▀▀▀
    """
    scale = min(columns / picture.width, 2 * rows / picture.height)
    wide = max(1, round(picture.width * scale))
    high = max(2, round(picture.height * scale / 2) * 2)
    values = picture.convert("RGB").resize((wide, high)).tobytes()
    pixels = [Color.from_rgb(*values[at : at + 3]) for at in range(0, len(values), 3)]
    lines = []
    for y in range(0, high, 2):
        line = Text()
        for x in range(wide):
            above, below = pixels[y * wide + x], pixels[(y + 1) * wide + x]
            line.append("▀", Style(color=above, bgcolor=below))
        lines.append(line)
    return Text("\n").join(lines)


def _png(picture: PIL.Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def kitty(picture: PIL.Image.Image) -> str:
    """In the protocol of kitty (https://sw.kovidgoyal.net/kitty/graphics-protocol), in chunks."""
    data = _png(picture)
    chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        first = "a=T,f=100,q=2," if number == 0 else ""
        more = int(number < len(chunks) - 1)
        parts.append(f"\x1b_G{first}m={more};{chunk}\x1b\\")
    return "".join(parts)


def iterm(picture: PIL.Image.Image) -> str:
    """In the protocol of iTerm2 (https://iterm2.com/documentation-images.html)."""
    return f"\x1b]1337;File=inline=1;width={picture.width}px;height={picture.height}px:{_png(picture)}\x07"


def sixel(picture: PIL.Image.Image) -> str:
    """As sixels, in 64 colours: six rows of pixels at a time, one colour after the other.

    >>> sixel(PIL.Image.new("RGB", (2, 1), "red"))
    '\\x1bPq"1;1;2;1#0;2;100;0;0#0@@-\\x1b\\\\'
    """
    indexed = picture.convert("RGB").quantize(64)
    wide, high = indexed.size
    palette = indexed.getpalette() or []
    pixels = list(indexed.tobytes())
    used = sorted(set(pixels))
    parts = [f'\x1bPq"1;1;{wide};{high}']
    for colour in used:
        red, green, blue = (round(value / 2.55) for value in palette[3 * colour : 3 * colour + 3])
        parts.append(f"#{colour};2;{red};{green};{blue}")
    for top in range(0, high, 6):
        band = [pixels[row * wide : (row + 1) * wide] for row in range(top, min(top + 6, high))]
        lines = []
        for colour in sorted({value for row in band for value in row}):
            bits = [sum((row[x] == colour) << bit for bit, row in enumerate(band)) for x in range(wide)]
            lines.append(f"#{colour}" + "".join(chr(63 + value) for value in bits))
        parts.append("$".join(lines) + "-")
    return "".join(parts) + "\x1b\\"
