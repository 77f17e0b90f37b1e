"""Evaluation: metrics, calibration, comparison and probing of trained models."""
