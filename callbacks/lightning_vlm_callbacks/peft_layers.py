"""What PEFT's layers are, known by their classes without importing PEFT."""

from torch import nn

__all__ = ["is_of_peft", "wrapped_parameters"]


def is_of_peft(layer: nn.Module, classes: tuple[str, ...]) -> bool:
    """Whether a layer is of one of PEFT's classes of LoRA, or of a class made from one.

    >>> is_of_peft(nn.Linear(1, 1), ("Linear",))
    False
    """
    for base in type(layer).__mro__:
        if base.__module__.startswith("peft.tuners.lora") and base.__name__ in classes:
            return True
    return False


def wrapped_parameters(root: nn.Module) -> dict[str, str]:
    """PEFT's wrappers of single parameters (`target_parameters`, such as the weights of experts), by name.

    Their A and B are in linear layers that are never called: the wrapper adds `B A` to the parameter.

    Returns:
        The name of each wrapper, and the name of its parameter as it is without wrappers.
    """
    found: dict[str, str] = {}
    for name, layer in root.named_modules():
        if is_of_peft(layer, ("ParamWrapper",)):
            path = name
            while path.endswith(".base_layer"):  # one wrapper is inside another
                path = path.removesuffix(".base_layer")
            found[name] = f"{path}.{layer.parameter_name}"
    return found
