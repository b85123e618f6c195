"""What a fit needs around the module: checks at its start, exact resume, averaged weights."""
