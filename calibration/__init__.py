"""Calibration frames, post-training quantization and the accuracy gate."""
