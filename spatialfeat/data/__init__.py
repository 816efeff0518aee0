"""From a CSV and PNG files to batches of frames: read, check, group, decode, transform."""
