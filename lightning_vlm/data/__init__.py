"""From a line of JSON to a batch: conversations, readers, exact masks, collating."""
