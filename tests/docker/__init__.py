"""The image and the local trial, on a real Docker engine in a world of its own."""
