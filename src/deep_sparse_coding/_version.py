"""The version, read by the build and by files that this library writes."""

__version__ = "0.1.0"
