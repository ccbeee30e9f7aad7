"""Who is told that he may not do what a release does, and how he is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.errors import UnavailableError
from shipctl_plugins._kubernetes.api.connection import Access, connect
from shipctl_plugins._kubernetes.app import App
from shipctl_plugins._kubernetes.rights import check_rights
from support_faulty_api import Act, answer, faulty_api, refusal

RULE = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}
REST = (
    "may not do in namespace shop what a release does: list pods; have these rules added to its Role: "
    '[{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]'
)


def served(kind: str) -> Act:
    """Answer a discovery of one kind."""
    return answer({"resources": [{"name": f"{kind.lower()}s", "kind": kind, "namespaced": False}]})


def told(folder: Path, *acts: Act) -> str:
    """Return what somebody is told who lacks a right; ``acts`` answer the question who he is."""
    with faulty_api() as api:
        api.then(served("SelfSubjectAccessReview"), answer({"status": {"allowed": False}}), *acts)
        access = Access.model_validate({"kubeconfig": str(api.kubeconfig(folder)), "timeout": "5s"})
        with connect(access, folder, lambda _line: None) as cluster, pytest.raises(UnavailableError) as error:
            check_rights(cluster, App("digits", "shop", "digits"), [RULE])
    return str(error.value)


def test_who_lacks_a_right_is_called_as_the_cluster_does(tmp_path: Path) -> None:
    """By a SelfSubjectReview, which Kubernetes has from 1.28 on."""
    review = answer({"status": {"userInfo": {"username": "eve@example.com"}}})
    assert told(tmp_path, served("SelfSubjectReview"), review) == f"eve@example.com {REST}"


def test_an_older_cluster_does_not_say_who_it_is(tmp_path: Path) -> None:
    assert told(tmp_path, refusal(404)) == f"user entry me of the kubeconfig {REST}"


def test_a_cluster_that_refuses_to_say_who_it_is_does_not_hide_what_is_missing(tmp_path: Path) -> None:
    denied = refusal(403, "Forbidden", 'User "x" cannot create resource "selfsubjectreviews"')
    assert told(tmp_path, served("SelfSubjectReview"), denied) == f"user entry me of the kubeconfig {REST}"
