"""Reading a config: strict YAML, and the nearest key, class and type for each mistake."""
