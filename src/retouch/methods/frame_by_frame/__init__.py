"""Every frame edited for itself: the baseline."""
