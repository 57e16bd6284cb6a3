"""The questions of each assignment."""
