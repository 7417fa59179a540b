"""The report's figures, one module each.

A module has COLUMNS (the metrics it reads), compute(groups, settings) -> panels of arrays,
draw(panels, lines, scale) -> Figure, caption(panels, settings) -> str, and SCALES, the axes that the page lets a reader choose
from (the first is that of the files). compute knows no matplotlib; draw knows no files. Artists that belong to a label carry
the id "kind:label", so that the page can switch them off; kinds: seed, mean, band.
"""
