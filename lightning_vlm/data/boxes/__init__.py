"""How each model family writes what lies in a picture, and reads it back."""
