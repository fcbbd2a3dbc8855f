"""Metrics, evaluation sets, comparison of two networks, and the operator's benchmark."""
