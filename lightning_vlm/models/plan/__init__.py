"""What trains and how: the plan, the adapters it puts in, and new tokens."""
