"""What every part of the house stands on, and no user of it looks for."""
