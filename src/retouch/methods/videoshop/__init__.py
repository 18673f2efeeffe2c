"""Videoshop (Fan, Bhattad, Krishna 2024): the first frame, edited anywhere, carried through the clip."""
