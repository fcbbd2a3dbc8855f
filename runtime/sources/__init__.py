"""Frame sources: files, videos, cameras, network streams and the synthetic source."""
