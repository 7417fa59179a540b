"""Statistics over runs: bootstrap aggregates, and methods for few seeds."""
