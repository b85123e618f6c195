"""What a run prints and leaves behind: tables, files, pictures, its page in Weights & Biases."""
