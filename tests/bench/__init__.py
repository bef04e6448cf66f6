"""Long or heavy measurements, run by hand; each prints its figures, none is a test."""
