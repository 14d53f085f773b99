"""Stand-ins for the hospital and the centre: for the demo and for tests only."""
