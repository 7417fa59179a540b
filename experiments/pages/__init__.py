"""The generated parts of the documentation: numbers from results/, and pictures from the code that they explain.

    python -m experiments.pages            # rewrite them
    python -m experiments.pages --check    # exit with 1 and list stale parts

They are placed between <!-- rendered: NAME WORD ... --> and <!-- /rendered -->; NAME is a function in ``numbers.RENDERERS``.
"""
