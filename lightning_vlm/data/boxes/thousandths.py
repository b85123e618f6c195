"""The codec of models that have no format of their own."""

from lightning_vlm.data.boxes.tagged import Thousandths as Thousandths
