"""The live pipeline: overlapping stages, channels between them, and the tracker."""
