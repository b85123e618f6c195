"""`lightning-vlm compare`: models side by side on the same samples, with what chance could have done."""
