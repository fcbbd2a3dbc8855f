"""Archives of pictures: many machines, files that are done stay done."""
