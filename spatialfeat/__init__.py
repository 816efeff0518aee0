"""The spatial stage of surgical phase recognition."""

__version__ = "0.1.0"
