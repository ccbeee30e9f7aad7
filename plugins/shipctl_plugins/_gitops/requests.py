"""Releases that wait on a branch of their own until somebody merges them."""

from __future__ import annotations

import re
from contextlib import suppress

from shipctl.release.delegated import Followed, Standing
from shipctl_plugins._gitops.changes import Changes
from shipctl_plugins._gitops.git import RefusedError, Repository
from shipctl_plugins._gitops.tree import Tree
from shipctl_plugins._kubernetes.app import App


class Requests:
    """The branches of one app."""

    def __init__(self, repository: Repository, app: App) -> None:
        self._repository = repository
        self._prefix = f"shipctl/{app.name}-"

    def branch(self, version: str) -> str:
        """Return the branch of a version."""
        return f"{self._prefix}{re.sub(r'[^A-Za-z0-9.+_-]', '-', version)}"

    @property
    def way_back(self) -> str:
        """The branch of a way back that may not be pushed directly."""
        return f"{self._prefix}back"

    def find(self, revision: str) -> tuple[str, Tree] | None:
        """Return the branch on which a revision waits, with the tree there; None if there is none.

        :raises UnavailableError: if the repository cannot be reached
        """
        for branch in sorted(self._repository.heads(f"{self._prefix}*")):
            commit = self._repository.fetch(branch)
            if commit is not None and branch != self.way_back:
                tree = Tree(self._repository, commit)
                if tree.current == revision:
                    return branch, tree
        return None

    def waiting(self, tree: Tree, revision: str) -> Followed | None:
        """Return how a revision stands that waits on a branch; None if it does not."""
        if tree.current == revision:
            return None
        found = self.find(revision)
        if found is None:
            return None
        place = f"{self._repository.options.branch} of {self._repository.program.place}"
        return Followed(
            standing=Standing.PAUSED,
            stable=tree.current,
            current=revision,
            asks="promote",
            message=f"{found[0]} waits to be merged into {place}; an approval merges it",
        )

    def merge(self, revision: str, changes: Changes) -> str | None:
        """Commit what waits on a branch, remove that, and return the commit; None if nothing waits.

        :raises RefusedError: if the server does not let us push
        """
        found = self.find(revision)
        if found is None:
            return None
        branch, waiting = found
        commit, _ = self._repository.change(
            lambda base: changes.merged(Tree(self._repository, base), waiting, revision)
        )
        self._remove(branch)
        return commit

    def forget(self, revision: str) -> str | None:
        """Remove the branch on which a revision waits, and return its name."""
        found = self.find(revision)
        if found is None:
            return None
        self._remove(found[0])
        return found[0]

    def _remove(self, branch: str) -> None:
        with suppress(RefusedError):  # it stays, and says the same as the branch that it was merged into
            self._repository.remove(branch)
