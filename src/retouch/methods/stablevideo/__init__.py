"""Key frames edited by words or by any picture editor, carried by the atlas."""
