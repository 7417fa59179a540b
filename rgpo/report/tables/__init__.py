"""Tables for experiments, for benchmarks, and for changes between two states of the results."""
