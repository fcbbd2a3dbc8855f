"""The split rule: training composites and the fit."""
