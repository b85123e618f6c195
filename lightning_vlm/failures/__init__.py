"""What a person reads when something fails: at most three lines, the cause first."""
