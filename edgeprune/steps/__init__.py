"""Callbacks that act inside every training step: what sparsity and clustering share."""
