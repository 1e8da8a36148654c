"""Image volumes: their files and their place in scanner coordinates."""
