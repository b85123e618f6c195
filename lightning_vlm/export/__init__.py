"""A trained model as a folder that plain transformers or PEFT load, proved before it is there."""
