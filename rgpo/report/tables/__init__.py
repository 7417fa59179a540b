"""Tables of an experiment, of the benchmarks, and of the changes between two states of the results."""
