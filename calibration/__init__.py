"""Calibration frames, post-training quantisation and the accuracy gate. Empty in 0.1.0."""
