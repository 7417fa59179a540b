"""The report's figures, one module each; rgpo.report.figures.render.FigureModule describes what a module has.

compute does not import matplotlib, and draw reads no files. Artists that belong to a label carry the id "kind:label", so that the
page can hide them; kinds: seed, mean, band.
"""
