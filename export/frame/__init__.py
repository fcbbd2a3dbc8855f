"""Frame mode: instance heads on a semantic network's own features, taught by the instance network; one pass
for everything."""
