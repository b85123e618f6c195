"""The commands whose figures stand in RELIABILITY.md. Each prints its figure at its end."""
