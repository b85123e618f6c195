"""Fine-tuning callbacks for any PyTorch Lightning project. Needs only torch and lightning."""
