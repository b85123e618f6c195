"""Whether what a command writes at its end can be written, found out before it begins."""

from pathlib import Path

from lightning_vlm_callbacks.whole_files import check_writable, refusal

from lightning_vlm.errors import UserError


def require_writable(key: str, path: str | Path) -> None:
    """Refuse a file that can't be written before any work is done for it. Nothing is made.

    Args:
        key: The option that names the file.
        path: The file, or a folder that isn't there yet.

    Raises:
        UserError: It can't be written.
    """
    try:
        check_writable(Path(path))
    except OSError as error:
        raise UserError(f"{key}: {refusal(error)}") from None
