"""What every stage stands on: errors, records, files, the console, the machine."""
