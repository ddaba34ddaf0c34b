"""What `moeworks.edit.collect` and `moeworks.edit.stream` are made of: hooks on one layer, sums, rows, texts, state."""
