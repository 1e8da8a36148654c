"""Lightning data modules: phantoms for training, scans to reconstruct."""
