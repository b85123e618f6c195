"""`chat`: ask a checkpoint, an exported folder or a base model, in the terminal or on a page."""
