"""Methods by name, and the one call that needs no file."""
