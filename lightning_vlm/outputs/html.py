"""What pages have in common: a template that escapes, and pictures inside the page."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PrefixLoader, StrictUndefined


def templates(folder: Path, filters: dict[str, Callable[..., Any]]) -> Environment:
    """The templates of a folder, and as `shared/...` what all pages share.

    That is `shared/page.html`, the frame that a page extends, with `shared/page.css` inside, and the macros
    of `shared/figures.html`. Templates escape what they are given, and a name that isn't there is an error.

    Args:
        folder: Where the page's own templates lie.
        filters: What they call, by name.

    >>> "prefers-color-scheme" in templates(Path(), {}).get_template("shared/page.css").render()
    True
    """
    shared = PrefixLoader({"shared": FileSystemLoader(Path(__file__).parent)})
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder), shared]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment


def data_uri(image: PIL.Image.Image, side: int = 768, exact: int = 256 * 256) -> str:
    """A picture as a data URI.

    Args:
        image: In mode RGB.
        side: Its longer side at most; larger pictures are made smaller.
        exact: A picture of so many pixels at most keeps them exactly (PNG), others are JPEG.
    """
    image, file = image.copy(), io.BytesIO()
    image.thumbnail((side, side))
    if image.width * image.height <= exact:
        kind = "png"
        image.save(file, kind)
    else:
        kind = "jpeg"
        image.save(file, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
