"""What a user would otherwise pick."""
