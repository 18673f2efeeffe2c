"""Tune-A-Video (Wu et al., ICCV 2023): a text-to-image model that has learned one clip."""
