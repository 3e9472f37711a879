"""Relax graphs as PyTorch modules, to be differentiated and trained.

The modules of this folder import torch, which is an extra: they are imported where they are
used, never at the import of others.
"""
