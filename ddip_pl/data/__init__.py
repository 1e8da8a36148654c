"""Where images and measurements come from."""
