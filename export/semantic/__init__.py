"""The default semantic network: data, training, export, score calibration."""
