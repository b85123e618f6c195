"""Mends for other packages, each only where that package is really broken."""
