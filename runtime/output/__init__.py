"""Output of results: files, recordings, a window and the web viewer."""
