"""Many environment steps under a small policy in one call of compiled C; the numpy loop is the reference and the fallback."""
