"""Columns of arrow tables that hold pictures as bytes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow


def holds_bytes(kind: "pyarrow.DataType") -> bool:
    """Whether a type is bytes, or has fields that are."""
    if _is_bytes(kind):
        return True
    fields = [kind.field(index) for index in range(kind.num_fields)]
    return any(holds_bytes(field.type) for field in fields)


def _is_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def without_bytes(pictures: "pyarrow.Array") -> "pyarrow.Array":
    """The same pictures with empty bytes: checking a data set must not read all of its pictures."""
    import pyarrow
    import pyarrow.compute

    kind = pictures.type
    if _is_bytes(kind):
        return pyarrow.compute.if_else(pictures.is_valid(), b"", None)
    if pyarrow.types.is_struct(kind):
        fields = [without_bytes(pictures.field(index)) for index in range(kind.num_fields)]
        names = [field.name for field in kind.fields]
        return pyarrow.StructArray.from_arrays(fields, names=names, mask=pictures.is_null())
    if pyarrow.types.is_list(kind):
        values = without_bytes(pictures.values)
        return pyarrow.ListArray.from_arrays(pictures.offsets, values, mask=pictures.is_null())
    return pictures
