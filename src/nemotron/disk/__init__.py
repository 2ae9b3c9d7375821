"""How this product writes: whole or not at all, on the disk when it says so, one writer at a time. Knows no content."""
