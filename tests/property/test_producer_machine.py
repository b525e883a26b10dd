"""The producer against a model server, over a network that loses, delays, repeats and reorders."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.errors import FetchError
from durable_streams.protocol.producer import Producer, ProducerJob, ProducerSettings
from durable_streams.protocol.request import Request, Response

URL = "http://host/stream"


class ModelServer:
    """The table of protocol section 4, for one stream of bytes."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.epoch, self.last = -1, -1
        self.closed_by: tuple[int, int] | None = None

    def handle(self, request: Request) -> Response:
        epoch, seq = int(request.headers["producer-epoch"]), int(request.headers["producer-seq"])
        if self.closed_by is not None:
            same = (epoch, seq) == self.closed_by
            return Response(204 if same else 409, {"stream-closed": "true", "stream-next-offset": "end"})
        if epoch < self.epoch:
            return Response(403, {"producer-epoch": str(self.epoch)})
        if epoch > self.epoch:
            if seq and self.epoch >= 0:
                return Response(400, {})
            if seq:
                return self.gap(0, seq)
            self.epoch, self.last = epoch, -1
        if seq <= self.last:
            return Response(204, {"producer-seq": str(self.last), "stream-next-offset": "x"})
        if seq > self.last + 1:
            return self.gap(self.last + 1, seq)
        self.last = seq
        if request.body:
            self.log.append(request.body)
        if request.headers.get("stream-closed") == "true":
            self.closed_by = (epoch, seq)
        return Response(200, {"producer-seq": str(seq), "stream-next-offset": str(len(self.log))})

    def gap(self, expected: int, received: int) -> Response:
        headers = {"producer-expected-seq": str(expected), "producer-received-seq": str(received)}
        return Response(409, headers)


class Network:
    """Requests on their way, and late copies of those that the client gave up."""

    def __init__(self, machine: Producer, server: ModelServer) -> None:
        self.machine, self.server = machine, server
        self.under_way: list[ProducerJob] = []
        self.answers: list[tuple[int, Response]] = []
        self.late: list[Request] = []
        self.now = 0.0
        self.bodies: dict[tuple[str, str], bytes | None] = {}

    def send(self) -> None:
        while (job := self.machine.next_request(self.now)) is not None:
            key = (job.request.headers["producer-epoch"], job.request.headers["producer-seq"])
            assert self.bodies.setdefault(key, job.request.body) == job.request.body
            self.under_way.append(job)
            assert self.machine.in_flight_count <= 3

    def deliver(self, index: int, copies: int) -> None:
        job = self.under_way.pop(index % len(self.under_way))
        self.answers.append((job.token, self.server.handle(job.request)))
        for _ in range(copies):
            self.server.handle(job.request)

    def lose(self, index: int, *, executed: bool, later: bool) -> None:
        job = self.under_way.pop(index % len(self.under_way))
        if executed:
            self.server.handle(job.request)
        elif later:
            self.late.append(job.request)
        self.machine.failed(job.token, FetchError("lost"), self.now)

    def answer(self, index: int, *, arrives: bool) -> None:
        token, response = self.answers.pop(index % len(self.answers))
        if arrives:
            self.machine.answered(token, response, self.now)
        else:
            self.machine.failed(token, FetchError("lost"), self.now)

    def step(self, action: int) -> None:
        self.now += 0.01
        self.send()
        kind, index = action % 8, action // 8
        if kind == 0 and self.late:
            self.server.handle(self.late.pop(index % len(self.late)))
        elif kind in {1, 2, 3} and self.under_way:
            self.deliver(index, copies=int(kind == 3))
        elif kind == 4 and self.under_way:
            self.lose(index, executed=bool(index % 2), later=bool(index % 3))
        elif kind in {5, 6} and self.answers:
            self.answer(index, arrives=True)
        elif kind == 7 and self.answers:
            self.answer(index, arrives=False)

    def settle(self) -> None:
        """Let everything arrive."""
        for _ in range(10_000):
            if self.machine.idle or self.machine.error is not None:
                return
            self.machine.flush()
            self.now = max(self.now, self.machine.wake_at(self.now) or self.now)
            self.send()
            while self.under_way:
                self.deliver(0, copies=0)
            while self.answers:
                self.answer(0, arrives=True)
        raise AssertionError("the producer makes no progress")


def make_machine(**options: object) -> Producer:
    settings_ = ProducerSettings(max_batch_bytes=12, linger=0.02, max_in_flight=3, retry_timeout=1e9)
    return Producer(URL, "p", random=lambda: 0.5, content_type="text/plain", settings=settings_, **options)  # type: ignore[arg-type]


@settings(max_examples=250)
@given(st.lists(st.integers(0, 79), max_size=150), st.integers(0, 40), st.booleans())
def test_exactly_once_and_in_order(actions: list[int], count: int, closing: bool) -> None:
    server, machine = ModelServer(), make_machine()
    network = Network(machine, server)
    records = [f"<{number}>".encode() for number in range(count)]
    waiting = list(records)
    for action in actions:
        if waiting and action % 3 == 0:
            machine.add(waiting.pop(0), network.now)
        network.step(action)
    for record in waiting:
        machine.add(record, network.now)
    if closing:
        machine.close_stream(None, object())
    network.settle()
    assert machine.error is None
    assert b"".join(server.log) == b"".join(records)
    assert all(len(body) <= 12 for body in server.log)
    assert (server.closed_by is not None) == closing
    assert machine.pending_count == 0
    assert machine.pending_bytes == 0


@settings(max_examples=200)
@given(st.lists(st.integers(0, 79), max_size=80), st.integers(1, 30), st.integers(0, 80), st.integers(0, 5))
def test_a_claimed_epoch_resends_in_order_without_loss(
    actions: list[int], count: int, when: int, known: int
) -> None:
    """Another producer takes over in the middle; answers are never lost, so that nothing is written twice either."""
    server, machine = ModelServer(), make_machine(auto_claim=True)
    network = Network(machine, server)
    records = [f"<{number}>".encode() for number in range(count)]
    waiting = list(records)
    for number, action in enumerate(actions):
        if number == when:
            server.epoch, server.last = server.epoch + 1 + known, 3
        if waiting and action % 3 == 0:
            machine.add(waiting.pop(0), network.now)
        if action % 8 not in {4, 7}:
            network.step(action)
    for record in waiting:
        machine.add(record, network.now)
    network.settle()
    assert machine.error is None
    assert b"".join(server.log) == b"".join(records)
