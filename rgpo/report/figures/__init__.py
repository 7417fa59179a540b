"""The report's figures, one module each; rgpo.report.figures.render.FigureModule is a module's interface.

compute does not import matplotlib, and draw reads no files. Artists that belong to a label have the id "kind:label" (kinds: seed,
mean, band), so that the page can hide them.
"""
