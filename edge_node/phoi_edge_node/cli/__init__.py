"""The commands of the edge node."""
