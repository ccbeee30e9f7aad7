"""The commands. Each module is named like its command and holds it under the name `command`."""
