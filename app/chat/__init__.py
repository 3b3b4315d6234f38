"""The framework: what a chat author's functions see."""
