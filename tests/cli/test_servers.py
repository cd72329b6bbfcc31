"""Ports for servers that are started side by side, in many processes at once."""

from __future__ import annotations

import socket

from cli.servers import free_port, is_free


def test_a_free_port_is_given_once_and_to_nobody_who_asks_for_any() -> None:
    ports = [free_port() for _ in range(300)]
    assert len(set(ports)) == len(ports)
    others = [socket.socket() for _ in range(3000)]
    try:
        for other in others:
            other.bind(("127.0.0.1", 0))
        assert {other.getsockname()[1] for other in others}.isdisjoint(ports)
    finally:
        for other in others:
            other.close()


def test_a_server_can_listen_on_a_free_port() -> None:
    port = free_port()
    assert is_free(port)
    with socket.create_server(("127.0.0.1", port)) as server:
        assert not is_free(port)
        with socket.create_connection(server.getsockname()):
            pass
