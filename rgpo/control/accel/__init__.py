"""Steps of environments under a small policy in one call of compiled C; numpy's loop remains the reference and the fallback."""
