"""Files: clips, pictures and masks, in and out."""
