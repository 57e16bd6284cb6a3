"""The questions of each assignment: what is right, and where not, why."""
