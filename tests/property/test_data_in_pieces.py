"""A data event that is encoded piece by piece decodes to what the whole does, wherever it is cut."""

from __future__ import annotations

import base64
import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from durable_streams.protocol.sse import DataEncoder, SSEDecoder, encode_control, encode_data

PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="ab \r\n:é€𝄞", max_size=40).map(str.encode),
)
CUTS = st.lists(st.integers(0, 60), max_size=6)


def pieces(payload: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(cut, len(payload)) for cut in cuts), len(payload)]
    return [payload[start:end] for start, end in itertools.pairwise(bounds) if end > start]


def decoded(block: bytes) -> bytes:
    events = SSEDecoder().feed(block + encode_control("1"))
    return events[0].data if events[0].event == "data" else b""


@given(PAYLOADS, CUTS)
@example(b"a\r\nb", [2])
@example(b"a\r", [1])
@example("€".encode(), [1, 2])
def test_g1_text_in_pieces(payload: bytes, cuts: list[int]) -> None:
    encoder = DataEncoder(text=True)
    block = encoder.begin() + b"".join(map(encoder.feed, pieces(payload, cuts)))
    held = encoder.held
    block += encoder.end()
    kept = payload[: len(payload) - held].decode("utf-8", "replace").encode()
    assert 0 <= held < 4
    assert decoded(block) == decoded(encode_data(kept, text=True))


@given(PAYLOADS, CUTS)
def test_g1_text_to_the_end_of_a_stream(payload: bytes, cuts: list[int]) -> None:
    encoder = DataEncoder(text=True)
    block = encoder.begin() + b"".join(map(encoder.feed, pieces(payload, cuts))) + encoder.end(final=True)
    whole = payload.decode("utf-8", "replace").encode()
    assert decoded(block) == decoded(encode_data(whole, text=True))


@given(PAYLOADS, CUTS)
def test_g1_bytes_in_pieces(payload: bytes, cuts: list[int]) -> None:
    encoder = DataEncoder(text=False)
    block = encoder.begin() + b"".join(map(encoder.feed, pieces(payload, cuts))) + encoder.end()
    assert base64.b64decode(decoded(block), validate=True) == payload
    assert encoder.held == 0
