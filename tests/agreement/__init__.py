"""What real implementations of B3 read, before and after b3relay's repair."""
