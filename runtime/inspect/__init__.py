"""Checks of the installation, and descriptions of model files."""
