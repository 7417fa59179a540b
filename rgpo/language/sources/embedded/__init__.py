"""The embedded scale: a small language model and two reward models, built on first use from rated review sentences."""
