"""Where releases go: implementations of :class:`shipctl.release.target.Target`."""
