"""DiffusionAtlas: edit the atlas by words and by a picture."""
