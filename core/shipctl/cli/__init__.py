"""The command line: one module per command below `commands`, imported when it is used."""
