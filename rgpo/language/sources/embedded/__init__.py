"""The embedded scale: a small language model, reward model and judge, built where they run from rated review sentences."""
