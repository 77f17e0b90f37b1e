"""Explanation: which patches contributed to a prediction."""
