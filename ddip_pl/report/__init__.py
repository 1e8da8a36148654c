"""`report.html`: an interactive view of reconstructions in a single file."""
