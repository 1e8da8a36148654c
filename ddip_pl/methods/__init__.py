"""The shipped methods by name, and reconstruction in one call."""
