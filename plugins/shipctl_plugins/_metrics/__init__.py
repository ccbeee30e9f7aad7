"""What metric providers share: asking over HTTP within a time, answers in JSON, Prometheus' text format."""
