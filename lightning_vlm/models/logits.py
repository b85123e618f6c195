"""What a family does to its logits after the head."""

import inspect
import re
from functools import cache
from typing import Any, NamedTuple

from transformers import PreTrainedModel


class LogitOptions(NamedTuple):
    """Logits are `softcap * tanh(z / softcap)` with `z = logit_scale * head(hidden)`."""

    softcap: float | None
    logit_scale: float


def logit_options(model: PreTrainedModel) -> LogitOptions:
    """How a model's own forward turns the output of its head into logits.

    The text config is not enough: LLaVA-NeXT around Granite and Aya Vision around Cohere use the head's
    output as it is, although the text model alone would change it, and PaliGemma caps its logits in
    some versions of transformers only. So this looks in the forward's source for the settings that it reads.
    """
    given = vars(model).get("logit_options")  # by `FamilyHooks.logits`
    if given is not None:
        return given
    family: Any = type(model)
    capped, scaled = _read_by(family)
    text = model.config.get_text_config()
    scale = 1.0 if scaled is None else text.logits_scaling
    return LogitOptions(
        softcap=getattr(text, "final_logit_softcapping", None) if capped else None,
        logit_scale=1 / scale if scaled == "/" else scale,
    )


@cache
def _read_by(kind: Any) -> tuple[bool, str | None]:
    """Whether a forward caps logits, and whether it divides or multiplies them by `logits_scaling`."""
    source = inspect.getsource(kind.forward)
    scaled = re.search(r"([*/])=? *[\w.()]*logits_scaling", source)
    return "final_logit_softcapping" in source, scaled[1] if scaled else None
