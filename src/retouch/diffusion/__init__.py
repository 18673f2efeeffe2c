"""Primitives of diffusion: attention, inversion, sampling, tuning."""
