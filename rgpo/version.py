"""The version of the package, apart from its public names so that every room can read it."""

__version__ = "0.2.0"
