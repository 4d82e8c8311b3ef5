"""The Delta protocol as this sink needs it: schemas, data files, log entries and their commit."""
