"""Lightning callbacks for output: files, pictures, checkpoints, progress, logging."""
