"""The embedded scale: a small language model and two reward models, trained on first use from rated review sentences."""
