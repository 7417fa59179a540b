"""A seeded campaign of faults: kills, damage, bit flips, odd folders, full disks, hostile files and random configurations.

    python -m tests.campaign                         the full campaign, about 20 minutes of two cores
    python -m tests.campaign --share                 the part of it that `make test` runs
    python -m tests.campaign --only KIND --case N    one case again, with everything that its commands printed

Every case ends in exactly one outcome (outcomes.py). A kind of case is a function in kills.py, damage.py (with corruptions.py),
flips.py, folders.py, disks.py, hostile.py (with harms.py) or configs.py that gets a seeded generator and an empty folder.
commands.py runs rgpo-run and rgpo-report in forked processes, operations.py makes their disk operations fail, and store.py has
the uninterrupted runs to compare with.
"""
