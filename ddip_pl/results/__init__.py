"""What finished runs leave behind, and tables of them."""
