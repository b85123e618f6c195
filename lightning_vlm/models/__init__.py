"""Models: loading, their parts, what of them trains, and the small one inside the package."""
