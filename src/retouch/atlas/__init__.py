"""The layered atlas: textures, mappings and the solvers that find them."""
