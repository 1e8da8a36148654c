"""Image volumes: their files, and where they belong."""
