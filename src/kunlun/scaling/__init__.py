"""Studies over many runs: models side by side, at one size; every run is an ordinary one."""
