"""The API server: how it is found, asked and answered, with its faults as errors of ours."""
