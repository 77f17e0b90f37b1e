"""Explanation: which patches contributed to a prediction, and how far to trust the answer."""
