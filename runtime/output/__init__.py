"""Where results go: files, recordings, a window, a web page."""
