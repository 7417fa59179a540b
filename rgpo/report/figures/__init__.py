"""The report's figures, one module each.

A module has COLUMNS (the metrics it reads), compute(groups, settings) -> panels of arrays,
draw(panels, lines) -> Figure, caption(panels, settings) -> str. compute knows no matplotlib; draw knows no files.
"""
