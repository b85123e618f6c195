"""What generic code can't see in a model class of your own: where its parts are, and two things more."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.errors import UserError
from lightning_vlm.models.logits import LogitOptions
from lightning_vlm.nearest import did_you_mean

_PLACES = ("vision", "language", "head", "embeddings")


class FamilyHooks:
    """Three methods to override where a class isn't built as those of transformers are.

    A config names the subclass in `model.family`, such as `my_package.MyFamily`. What a method leaves out is
    found as in any other model. See docs/own-model.md.

    >>> class MyFamily(FamilyHooks):
    ...     def parts(self, model):
    ...         return {"vision": "eye", "language": "brain", "head": "mouth"}
    """

    def parts(self, model: PreTrainedModel) -> Mapping[str, str]:
        """Where the parts of a model are.

        Args:
            model: As loaded, perhaps without weights.

        Returns:
            Paths of modules below the model: `vision` (the encoder of pictures), `language` (the decoder,
            without the head), `head` (from its last hidden states to the vocabulary) and `embeddings` (those
            of tokens). All else is the projector.
        """
        return {}

    def picture_token(self, processor: ProcessorMixin) -> str | None:
        """What a chat template writes where a picture stands, and the processor then expands."""
        return None

    def logits(self, model: PreTrainedModel) -> LogitOptions | None:
        """What the model's forward does to the output of its head; None if nothing that isn't seen."""
        return None


def find_family(name: str) -> FamilyHooks:
    """The hooks that a config names.

    Args:
        name: Of a subclass of `FamilyHooks`, with its module.

    Raises:
        UserError: There is no such module or class, or it is none.

    >>> find_family("my_family")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: model.family: found 'my_family'; expected a class and its module, such ...
    """
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise UserError(
            f"model.family: found {name!r}; expected a class and its module, such as my_package.MyFamily"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"model.family: {module_name} can't be imported ({error}); expected a module in the folder that "
            "you start in, or an installed one"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        near = did_you_mean(class_name, [name for name in vars(module) if not name.startswith("_")])
        raise UserError(f"model.family: {module_name} has no {class_name}{near}")
    if not (isinstance(found, type) and issubclass(found, FamilyHooks)):
        raise UserError(f"model.family: found {name}; expected a subclass of lightning_vlm.FamilyHooks")
    return found()


def is_of_transformers(model: PreTrainedModel) -> bool:
    """Whether transformers has the class of a model, which is then built as generic code expects."""
    return type(model).__module__.partition(".")[0] == "transformers"


def use_hooks(model: PreTrainedModel, hooks: FamilyHooks) -> None:
    """Let a model answer what generic code asks: its encoder, its decoder, its head, its embeddings.

    Args:
        model: Changed in place.
        hooks: Of its family.

    Raises:
        UserError: An unknown part, a path where there is no module, or what isn't `LogitOptions`.
    """
    name = type(hooks).__name__
    answers: dict[str, Callable] = {}
    for part, path in hooks.parts(model).items():
        if part not in _PLACES:
            near = did_you_mean(part, _PLACES)
            raise UserError(f"{name}.parts: found {part!r}; expected {', '.join(_PLACES)}{near}")
        _check_path(model, path, name)
        if part == "vision":
            answers["get_encoder"] = partial(_encoder, model, path)
        elif part == "language":
            answers["get_decoder"] = partial(_decoder, model, path)
        else:
            which = "output" if part == "head" else "input"
            answers[f"get_{which}_embeddings"] = partial(model.get_submodule, path)
            answers[f"set_{which}_embeddings"] = partial(model.set_submodule, path)
    # A partial is copied with the model that it holds; a method of a subclass would change what is saved.
    vars(model).update(answers)
    options = hooks.logits(model)
    if options is not None:
        if not isinstance(options, LogitOptions):
            raise UserError(f"{name}.logits: found {options!r}; expected lightning_vlm.LogitOptions or None")
        vars(model)["logit_options"] = options


def use_picture_token(processor: ProcessorMixin, hooks: FamilyHooks) -> None:
    """Let a processor say what stands for a picture.

    Raises:
        UserError: Its tokenizer has no such token.
    """
    token = hooks.picture_token(processor)
    if token is None:
        return
    vocabulary = processor.tokenizer.get_vocab()
    if token not in vocabulary:
        near = did_you_mean(token, vocabulary)
        raise UserError(
            f"{type(hooks).__name__}.picture_token: found {token!r}, which is no token of "
            f"{type(processor.tokenizer).__name__}{near}"
        )
    vars(processor)["image_token"] = token


def _encoder(model: PreTrainedModel, path: str, modality: str | None = None) -> nn.Module:
    return model.get_submodule(path)


def _decoder(model: PreTrainedModel, path: str) -> nn.Module:
    return model.get_submodule(path)


def _check_path(model: PreTrainedModel, path: Any, name: str) -> None:
    names = {each for each, _ in model.named_modules() if each}
    if path not in names:
        near = did_you_mean(str(path), sorted(names))
        raise UserError(f"{name}.parts: {type(model).__name__} has no module {path!r}{near}")
