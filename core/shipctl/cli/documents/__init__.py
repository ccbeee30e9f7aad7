"""The JSON documents of ``--json``: one record per command.

``schema`` names the document and its version; within a version fields are added, never renamed or removed.
`shipctl schema --of NAME` prints the JSON schema of each.
"""
