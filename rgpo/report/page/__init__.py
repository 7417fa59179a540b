"""The page, index.html, and its renewal."""
