"""From a CSV and images to batches of frames: read, check, group, decode, transform."""
