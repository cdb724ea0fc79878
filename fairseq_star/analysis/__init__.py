"""What a finished run is worth: its losses beside an untrained student's, and the report's page."""
