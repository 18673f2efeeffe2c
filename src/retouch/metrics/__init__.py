"""Measures of an edit: fidelity, consistency, colour, and what a text-and-image network says of it."""

from retouch.metrics.registry import Case, Metric, find_metric, measure, metrics

__all__ = ["Case", "Metric", "find_metric", "measure", "metrics"]
