"""Callbacks that know what a token or an answer is; `lightning_vlm_callbacks` has those for any project."""
