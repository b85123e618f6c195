"""Callbacks that work on tokens and answers; `lightning_vlm_callbacks` has those for any project."""
