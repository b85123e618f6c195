"""What is minimised: weights per token, and the cross-entropy of the language model in chunks."""
