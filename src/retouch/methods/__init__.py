"""The methods, one folder a paper: `spec.py` says what it is, `edit.py` does it."""
