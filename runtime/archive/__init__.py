"""Archives of pictures: segmentation on many machines, which can be interrupted and continued."""
