"""Recipes and presets: complete configurations by name, and their command-line flags."""
