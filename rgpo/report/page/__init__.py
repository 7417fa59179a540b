"""The page, index.html, and live updates of it."""
