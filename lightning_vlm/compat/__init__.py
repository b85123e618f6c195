"""Fixes for other packages, each applied only where that package is broken."""
