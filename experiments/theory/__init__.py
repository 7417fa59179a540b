"""The claims of the theory as experiments: `python -m experiments.theory` measures, judges, draws and writes docs/theory.md.

Each experiment is a module with

    measure(smoke) -> tables    seeded; every table is one results/theory/<experiment>_<table>.parquet
    verdicts(tables)            rows of the ledger, each with its rule
    numbers(tables)             the numbers of docs/theory.md
    draw(tables) -> Figure      docs/figures/theory_<experiment>.svg and .png

measure draws nothing; the other three read only the tables.
"""
