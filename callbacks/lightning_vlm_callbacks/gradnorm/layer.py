"""The layer on which GradNorm measures, and the modules with which that would be wrong."""

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vlm_callbacks.peft_layers import wrapped_parameters
from lightning_vlm_callbacks.selectors import select_modules

__all__ = ["refuse_batch_norms", "shared_layer"]


def shared_layer(root: nn.Module, selector: str | None, before: str | None) -> tuple[str, nn.Module]:
    """The layer on which the gradients of tasks are measured.

    Without a selector it is the last LoRA B that trains inside a list of layers, else the last linear layer
    inside one. LoRA on single parameters, as of experts, isn't called as a layer and is passed over.

    Args:
        root: The module that it is in.
        selector: Of the layer, if the user gave one.
        before: The name of the layer that a resumed run measured. It is taken if there is no selector,
            because fewer parameters may train now than when the run began.

    Returns:
        Its name, and the layer.

    Raises:
        MisconfigurationException: No layer, or several, or its weight is shared with another layer.
        SelectorError: The selector finds nothing.
    """
    if selector is not None:
        name, layer = _selected_layer(root, selector)
    elif before is not None:
        name, layer = before, _layer_of_checkpoint(root, before)
    else:
        name, layer = _last_layer(root)
    _refuse_tied(root, name, layer)
    return name, layer


def refuse_batch_norms(root: nn.Module) -> None:
    """Refuse batch norms that train, where each row of a batch belongs to one task.

    Raises:
        MisconfigurationException: There is one.
    """
    for name, module in root.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise MisconfigurationException(
                f"GradNorm: found {name}, a batch norm, through which samples of one task change those of "
                "another; freeze it in eval mode, or let tasks share inputs: TaskWeights.total"
            )


def _selected_layer(root: nn.Module, selector: str) -> tuple[str, nn.Module]:
    found = select_modules(root, selector)
    if len(found) != 1:
        raise MisconfigurationException(
            f"layer {selector!r}: found {len(found)} modules ({', '.join(list(found)[:4])}); expected one"
        )
    return next(iter(found.items()))


def _layer_of_checkpoint(root: nn.Module, name: str) -> nn.Module:
    modules = dict(root.named_modules())
    if name not in modules:
        raise MisconfigurationException(
            f"GradNorm: the checkpoint measured layer {name}, which the model doesn't have; resume with the "
            "same model, or set layer"
        )
    return modules[name]


def _last_layer(root: nn.Module) -> tuple[str, nn.Module]:
    linear = {name: module for name, module in root.named_modules() if isinstance(module, nn.Linear)}
    # Such adapters are never called, and what is beside experts sees tokens without their rows.
    beside = tuple(path.rsplit(".", 2)[0] + "." for path in wrapped_parameters(root).values())
    linear = {name: module for name, module in linear.items() if not name.startswith(beside)}
    in_a_list = [name for name in linear if any(word.isdigit() for word in name.split("."))]
    lora = [name for name in in_a_list if ".lora_B." in name and linear[name].weight.requires_grad]
    others = [name for name in in_a_list if ".lora_" not in name]
    if not lora and not others:
        raise MisconfigurationException(
            "GradNorm: found no linear layer inside a list of layers, and can't know which one all tasks "
            f"share; set layer to one of {', '.join(linear) or 'the linear layers, of which there are none'}"
        )
    name = (lora or others)[-1]
    return name, linear[name]


def _refuse_tied(root: nn.Module, name: str, layer: nn.Module) -> None:
    weight = getattr(layer, "weight", None)
    parameters = root.named_parameters(remove_duplicate=False)
    sharing = [other for other, parameter in parameters if parameter is weight]
    if len(sharing) > 1:
        raise MisconfigurationException(
            f"layer {name}: found a weight that is shared ({', '.join(sharing)}), whose gradient has a part "
            "that the layer doesn't see; choose another layer"
        )
