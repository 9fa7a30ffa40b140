# The version, in the one place that the build reads it from. Nothing else belongs here.

__version__ = "0.1.0"
