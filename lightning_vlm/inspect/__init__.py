"""What will be learned, shown without the model and without training."""
