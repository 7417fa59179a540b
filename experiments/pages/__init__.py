"""The rendered parts of the documentation: numbers from results/, pictures from the code that they explain.

    python -m experiments.pages            # rewrite them
    python -m experiments.pages --check    # exit with 1 and name what is stale

A page has them between <!-- rendered: NAME WORD ... --> and <!-- /rendered -->; NAME is a function of ``numbers.RENDERERS``.
"""
