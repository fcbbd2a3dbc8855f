"""Instance heads on a semantic network's features: classes and instances in one pass."""
