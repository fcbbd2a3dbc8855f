"""The instance network: which pixels of one class belong together, learned without one instance label."""
