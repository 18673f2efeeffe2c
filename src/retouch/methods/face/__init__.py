"""Faces: one identity, edited once; each frame's motion and background kept (Kim et al. 2023)."""
