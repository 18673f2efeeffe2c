"""Paint one picture, and every frame follows."""
