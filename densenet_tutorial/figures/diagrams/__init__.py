"""Diagrams of the book, as vector graphics: how things are built, not what was measured.

Channels, shapes and kernels are read from the modules that are drawn.
"""
