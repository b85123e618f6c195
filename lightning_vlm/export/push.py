"""Uploads an exported folder to the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lightning_vlm.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Target(NamedTuple):
    """Where a folder goes.

    Args:
        name: `user/name`.
        public: Whether anyone may see it; else only its owner.
    """

    name: str
    public: bool = False


def check_target(target: Target) -> None:
    """Refuse, before any work, what can't be uploaded.

    Args:
        target: Where to.

    Raises:
        UserError: No such name, no network, no token or a wrong one, or the name is taken.
    """
    if not _NAME.fullmatch(target.name):
        raise UserError(f"push: found {target.name!r}; expected user/name, as on the Hugging Face hub")
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise UserError("push: found HF_HUB_OFFLINE, which forbids uploads; unset it, or leave --push out")
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = _api()
    try:
        api.whoami()
        taken = api.repo_exists(target.name)
    except LocalTokenNotFoundError:
        raise UserError("push: found no token of the hub; run `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise UserError(_refused(error)) from error
    except Exception as error:  # of an HTTP library that the hub's client may change
        raise UserError(_unreachable(error)) from error
    if taken:
        raise UserError(f"push: {target.name} is on the hub already; choose another name, so that it stays")


def push(folder: Path, target: Target) -> str:
    """Upload a folder into a new repository.

    Args:
        folder: Exported and proved.
        target: Where to; as `check_target` has let pass.

    Returns:
        The address.

    Raises:
        UserError: The hub refuses it, or the network failed. The folder stays.
    """
    from huggingface_hub.errors import HfHubHTTPError

    api = _api()
    stays = f"; the folder is complete: hf upload {target.name} {folder}"
    try:
        api.create_repo(target.name, private=not target.public)
        api.upload_folder(
            repo_id=target.name, folder_path=folder, commit_message="Upload a model exported by lightning-vlm"
        )
    except HfHubHTTPError as error:
        raise UserError(f"{_refused(error)}{stays}") from error
    except Exception as error:  # of an HTTP library that the hub's client may change
        raise UserError(f"{_unreachable(error)}{stays}") from error
    return f"{api.endpoint}/{target.name}"


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)


def _refused(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "push: the hub doesn't know this token; run `hf auth login` again, or set another HF_TOKEN"
    if status == 403:
        return "push: the token may not write there; expected one that may, and your own user name"
    first = str(error).strip().split("\n")[0]
    return f"push: the hub refused it ({first})"


def _unreachable(error: Exception) -> str:
    first = str(error).strip().split("\n")[0] or type(error).__name__
    return f"push: the hub can't be reached ({first}); try again online, or leave --push out"
