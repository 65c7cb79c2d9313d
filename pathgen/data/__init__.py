"""Patches on their way into a network: sources, datasets, views."""
