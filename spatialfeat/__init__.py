"""The spatial stage of surgical phase recognition."""
