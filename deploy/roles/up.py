"""Chosen roles on threads of one process, for small shops and for looking around; the first that ends, ends all."""

from __future__ import annotations

import signal
from collections.abc import Callable
from threading import Event, Thread

from deploy.settings.tree import Settings


def run(settings: Settings, roles: tuple[str, ...]) -> None:
    """Run the roles until a signal, or until one of them ends: a learner that is fenced takes the server with it.

    Raises:
        Exception: what ended a role, if it did not end in good order.
    """
    parts: list[tuple[str, Callable[[], None], Callable[[], None]]] = []
    if "learn" in roles:
        from deploy.roles.learn import LearnRole

        learner = LearnRole(settings)
        parts.append(("learn", learner.run, learner.stop))
    if "serve" in roles:
        from deploy.roles.serve import ServingRole

        server = ServingRole(settings)
        parts.append(("serve", server.run, server.stop))
    ended = Event()
    errors: list[BaseException] = []

    def runner(role: Callable[[], None]) -> Callable[[], None]:
        def until_ended() -> None:
            try:
                role()
            except BaseException as error:  # handed to the main thread, which raises it
                errors.append(error)
            finally:
                ended.set()

        return until_ended

    interrupted = Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        ended.set()

    signal.signal(signal.SIGINT, interrupt)
    threads = [Thread(target=runner(role), name=name) for name, role, _ in parts]
    for thread in threads:
        thread.start()
    while not ended.wait(1.0):
        pass
    for _, _, stop in parts:
        stop()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if interrupted.is_set():
        raise KeyboardInterrupt
