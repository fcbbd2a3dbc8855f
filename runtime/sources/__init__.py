"""Frame sources: files, videos, cameras, network streams and a synthetic camera."""
