"""What happens beside training and reconstruction: pictures, files, checkpoints, progress."""
