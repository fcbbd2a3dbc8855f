"""Archives of images: segmentation on many machines, which can be interrupted and continued."""
