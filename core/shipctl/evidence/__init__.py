"""Evidence about a release: the package that holds it, its signatures, and what verifies both offline."""
