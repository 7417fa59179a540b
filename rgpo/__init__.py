"""Reference reproduction of Rejection-Gated Policy Optimization (arXiv 2604.14895)."""

__version__ = "0.1.0"
