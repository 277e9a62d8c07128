"""Data sets: where images come from, how they are split, and which example is in which step."""
