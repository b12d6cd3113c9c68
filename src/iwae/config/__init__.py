"""What a run is: the fields, their checks, and their TOML."""
