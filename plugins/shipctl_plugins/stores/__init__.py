"""Where artifacts can be kept: folders and S3."""
