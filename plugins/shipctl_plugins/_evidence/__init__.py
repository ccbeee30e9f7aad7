"""What is written about a package beside its provenance: bill of materials, licences, requirements."""
