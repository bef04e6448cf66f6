"""Long or heavy measurements, started by hand. They print figures and are no tests."""
