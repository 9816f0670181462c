"""The ground of every stage: errors, records, files, configuration, the console, the machine."""
