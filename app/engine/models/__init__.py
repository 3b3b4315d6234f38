"""Model architectures. One module each, found through the registry."""
