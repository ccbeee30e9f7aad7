"""Packages are published to a store and registered, here and with others."""
