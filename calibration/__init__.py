"""Calibration frames, post-training quantisation and the accuracy gate."""
