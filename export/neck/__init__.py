"""The shape rule: training composites and the fit."""
