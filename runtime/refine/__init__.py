"""Refinement: from regions of a class map to instances, with the instance network."""
