"""`report.html`: a reconstruction to look at, in one file."""
