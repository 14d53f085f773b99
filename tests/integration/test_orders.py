"""Orders and patients over MLLP: python-hl7's client sends, a real store remembers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import hl7
import pytest
from hl7.client import MLLPClient
from phoi_edge_node.errors import EdgeError
from phoi_edge_node.hl7v2 import listener as listening
from phoi_edge_node.hl7v2.listener import MllpListener
from phoi_edge_node.hl7v2.mllp import END, START
from phoi_edge_node.hl7v2.reception import Reception
from phoi_edge_node.orders import OrderStore
from phoi_edge_node.result import Priority
from phoi_edge_node.settings import OrdersSettings
from phoi_edge_node.sql.engine import open_engine
from phoi_edge_node.sql.sql_store import SqlStore
from phoi_edge_node.system import RandomUids, SystemClock
from support import values
from support.emr import hl7_faults
from support.outside import wait_for

PLANTED = "Nguyễn^Kẻ Lạ^^^^^L"
ORDER = (
    "MSH|^~\\&|HIS|BV|PHOI|BV|20260302094500+0700||ORM^O01^ORM_O01|{id}|P|2.5.1|||||VNM"
    "|UNICODE UTF-8\r"
    f"PID|1||BN-0042^^^BVTEST^MR||{PLANTED}||19610504|F\r"
    "ORC|NW|P{id}^HIS||||||||||77^Trần^An\r"
    "OBR|1|P{id}^HIS||71250^CT ngực^L|||||||||Ho ra máu|||||{accession}|||||||||^^^^^S\r"
)


@dataclass
class Site:
    port: int
    store: SqlStore
    database: str

    def say(self, message: str) -> hl7.Message:
        with MLLPClient("127.0.0.1", self.port) as client:
            client.socket.settimeout(20)
            return _unframed(client.send_message(message))


def _unframed(answer: bytes) -> hl7.Message:
    assert answer.startswith(START)
    assert answer.endswith(END)
    return hl7.parse(answer[1:-2])


def _order(number: int = 1, accession: str = "ACC1") -> str:
    return ORDER.format(id=number, accession=accession)


Start = Callable[..., Site]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as resources:

        def begin(store: OrderStore | None = None, **settings: object) -> Site:
            database = f"sqlite:///{tmp_path / 'phoi.sqlite'}"
            engine = open_engine(database)
            resources.callback(engine.dispose)
            real = SqlStore(engine, SystemClock())
            reception = Reception(store or real, SystemClock(), RandomUids(), "bvdk")
            options = OrdersSettings.model_validate({"port": 0} | settings)
            listener = MllpListener(options, reception.answer)
            listener.start()
            resources.callback(listener.stop)
            return Site(listener.port, real, database)

        yield begin


@pytest.fixture
def site(start: Start) -> Site:
    return start()


def _hangs_up(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_an_order_is_durable_when_it_is_acknowledged(site: Site) -> None:
    site.store.add_instance(values.instance(1))
    answer = site.say(_order())
    assert [str(answer.segment("MSA")[n]) for n in (1, 2)] == ["AA", "1"]
    engine = open_engine(site.database)
    order = SqlStore(engine, SystemClock()).order_of("1.2.3")
    engine.dispose()
    assert order is not None
    assert (order.priority, order.requester) == (Priority.STAT, "Trần^An")
    assert order.clinical_question == "Ho ra máu"


def test_acknowledgements_are_valid_for_hl7apy(site: Site) -> None:
    for message in (_order(), _order().replace("ORC|NW", "ORC|QQ")):
        answer = str(site.say(message)).encode()
        assert hl7_faults(answer) == []


def test_a_message_that_is_sent_again_is_acknowledged_again(site: Site) -> None:
    site.store.add_instance(values.instance(1))
    for _ in range(2):
        assert str(site.say(_order()).segment("MSA")[1]) == "AA"
    cancel = _order().replace("ORC|NW", "ORC|CA").replace("|1|P|2.5.1", "|2|P|2.5.1")
    assert str(site.say(cancel).segment("MSA")[1]) == "AA"
    assert str(site.say(_order()).segment("MSA")[1]) == "AA"
    assert site.store.order_of("1.2.3") is None


def test_many_senders_at_once_lose_nothing(site: Site) -> None:
    def send(first: int) -> list[str]:
        with MLLPClient("127.0.0.1", site.port) as client:
            client.socket.settimeout(60)
            answers = [
                _unframed(client.send_message(_order(n, f"ACC-{n}")))
                for n in range(first, first + 10)
            ]
        return [str(answer.segment("MSA")[1]) for answer in answers]

    with ThreadPoolExecutor(4) as pool:
        answers = [a for batch in pool.map(send, range(0, 40, 10)) for a in batch]
    assert answers == ["AA"] * 40
    for number in range(40):
        uid = f"1.2.{number + 10}"
        instance = values.instance(1, uid)
        header = replace(instance.study, accession_number=f"ACC-{number}")
        site.store.add_instance(replace(instance, study=header))
        assert site.store.order_of(uid) is not None, number


def test_messages_may_come_in_pieces_or_all_at_once(site: Site) -> None:
    frames = b"".join(START + _order(n, f"A{n}").encode() + END for n in (1, 2, 3))
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
        connection.sendall(frames[:100])
        connection.sendall(frames[100:])
        received = b""
        while received.count(END) < 3:
            received += connection.recv(65536)
    acknowledged = [_unframed(part + END) for part in received.split(END)[:-1]]
    assert [str(a.segment("MSA")[2]) for a in acknowledged] == ["1", "2", "3"]


def test_what_cannot_be_stored_is_answered_ae_and_taken_the_next_time(start: Start) -> None:
    class Broken:
        def take_message(self, message: object) -> bool:
            raise OSError("disk full of Nguyễn Kẻ Lạ")

        def order_of(self, study_instance_uid: str) -> None:
            return None

    answer = start(store=Broken()).say(_order())
    assert str(answer.segment("MSA")[1]) == "AE"
    assert "Kẻ Lạ" not in str(answer)


def test_a_peer_that_is_not_allowed_is_shown_the_door(start: Start) -> None:
    site = start(allowed_peers=["192.0.2.0/24"])
    with socket.create_connection(("127.0.0.1", site.port)) as connection:
        assert _hangs_up(connection)


@pytest.mark.parametrize(
    "what", [b"GET / HTTP/1.1\r\n", START + b"x" * (listening.MAXIMUM_MESSAGE + 1)]
)
def test_what_is_no_mllp_or_too_long_is_shed(site: Site, what: bytes) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
        try:
            connection.sendall(what)
        except ConnectionError:
            return
        assert _hangs_up(connection)


def test_the_silent_and_the_slow_are_shed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "IDLE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(listening, "MESSAGE_TIMEOUT_S", 0.3)
    site = start()
    for begun in (b"", START + b"MSH|"):
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
            connection.sendall(begun)
            assert _hangs_up(connection)


def test_silent_sockets_leave_others_undisturbed(site: Site) -> None:
    """Two hundred from the sender's own address: only so many are held, the oldest go."""
    threads = threading.active_count()
    with ExitStack() as silent:
        first, *_others = [
            silent.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=20))
            for _ in range(200)
        ]
        assert str(site.say(_order()).segment("MSA")[1]) == "AA"
        assert _hangs_up(first)
        most = threads + listening.MAXIMUM_CONNECTIONS_PER_PEER
        wait_for("threads to end", lambda: threading.active_count() <= most, 20)


def test_a_connection_in_the_middle_of_a_message_is_not_hung_up_for_others(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAXIMUM_CONNECTIONS_PER_PEER", 1)
    site = start()
    frame = START + _order().encode() + END
    with socket.create_connection(("127.0.0.1", site.port), timeout=20) as busy:
        busy.sendall(frame + frame[:50])
        answer = b""
        while END not in answer:
            answer += busy.recv(65536)  # the second message is under way now
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as other:
            assert _hangs_up(other)
        busy.sendall(frame[50:])
        assert b"MSA|AA|1" in busy.recv(65536)


def test_a_port_in_use_is_said_with_what_to_do(site: Site) -> None:
    listener = MllpListener(OrdersSettings(port=site.port), lambda message: message)
    with pytest.raises(EdgeError, match=r"orders\.port"):
        listener.start()


def test_a_thread_that_cannot_be_started_costs_one_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with socket.create_connection(("127.0.0.1", site.port), timeout=20) as connection:
            assert _hangs_up(connection)
    assert "MSA|AA|1" in str(site.say(_order()))


def test_anybody_on_the_network_may_not_merge_patients() -> None:
    with pytest.raises(ValueError, match="Name who may send"):
        OrdersSettings(host="0.0.0.0")
