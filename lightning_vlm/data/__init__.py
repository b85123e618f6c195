"""From a row of a file to a batch: reading, rendering with exact masks, batches; and the drawn data."""
