"""What is said where Weights & Biases can't be logged to."""

ELSEWHERE = (
    "set WANDB_MODE=offline to log into a folder, which `wandb sync` uploads later,\n"
    "or log elsewhere: leave the logger out for CSV, or --config track/tensorboard"
)
NO_LOGIN = (
    f"Weights & Biases: found no login on this machine; run wandb login, or set WANDB_API_KEY,\n{ELSEWHERE}"
)
