"""The example of an application whose own users have grants."""

from __future__ import annotations

import fastapi_auth
import pytest
from fastapi.testclient import TestClient

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Starlette's test client


def test_each_user_has_a_folder() -> None:
    alice, bob = ("alice", "wonderland"), ("bob", "builder")
    with TestClient(fastapi_auth.app) as client:
        notes = "/streams/v1/stream/users/alice/notes"
        text = {"content-type": "text/plain"}
        created = client.put(notes, auth=alice, headers=text, content=b"one, ")
        assert created.status_code == 201
        assert created.headers["location"] == f"http://testserver{notes}"
        assert client.post(notes, auth=alice, headers=text, content=b"two").status_code == 204
        assert client.get(f"{notes}?offset=-1&live=long-poll", auth=alice).text == "one, two"
        assert client.head(notes, auth=alice).status_code == 200
        assert client.get(notes, auth=bob).status_code == 403
        assert client.get(notes).status_code == 401
        assert client.get(notes, auth=("alice", "wrong")).status_code == 401
        fork = {"stream-forked-from": notes}
        assert client.put("/streams/v1/stream/users/bob/fork", auth=bob, headers=fork).status_code == 403
        assert client.delete(notes, auth=alice).status_code == 204
