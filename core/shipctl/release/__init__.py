"""What is known about releases: their records, which live with the target."""
