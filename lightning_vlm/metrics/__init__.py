"""What is measured: text scores, sums per task, and how far one gets without looking."""
