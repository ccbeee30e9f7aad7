"""S3 for those plugins that need it: where the server is, who we are, what a failure means, files in parts."""
