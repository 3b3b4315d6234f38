"""What must hold when processes are killed at random moments."""
