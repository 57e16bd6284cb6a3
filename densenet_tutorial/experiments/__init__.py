"""What the results pages are made from: networks to compare with, and measurements."""
