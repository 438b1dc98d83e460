"""Several roles as threads of one process; the first that ends, ends all."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event, Thread

from deploy.settings.tree import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    name: str
    run: Callable[[], None]
    stop: Callable[[], None]


def run(settings: Settings, roles: tuple[str, ...]) -> None:
    """Run the roles until a signal, or until one of them ends.

    A learner that is fenced takes the server with it.

    Raises:
        Exception: the error that ended a role, if one did.
    """
    parts = _made(settings, roles)
    ended, interrupted = Event(), Event()
    errors: list[BaseException] = []

    def run_role(role: _Role) -> None:
        try:
            role.run()
        except BaseException as error:  # handed to the main thread, which raises it
            errors.append(error)
        finally:
            ended.set()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        ended.set()

    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, interrupt)
    threads = [Thread(target=run_role, args=(role,), name=role.name) for role in parts]
    for thread in threads:
        thread.start()
    while not ended.wait(1.0):
        pass
    for role in parts:
        role.stop()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if interrupted.is_set():
        raise KeyboardInterrupt


def _made(settings: Settings, roles: tuple[str, ...]) -> list[_Role]:
    settings = with_one_number_of_threads(settings, roles)
    made = []
    if "learn" in roles:
        from deploy.roles.learn import LearnRole

        learner = LearnRole(settings)
        made.append(_Role(name="learn", run=learner.run, stop=learner.stop))
    if "serve" in roles:
        from deploy.roles.serve import ServingRole

        server = ServingRole(settings)
        made.append(_Role(name="serve", run=server.run, stop=server.stop))
    return made


def with_one_number_of_threads(settings: Settings, roles: tuple[str, ...]) -> Settings:
    """Let a server beside a learner use the learner's threads: sums must keep their order."""
    if "learn" not in roles:
        return settings
    serving = settings.serving
    watcher = replace(serving.watcher, threads=settings.learner.threads)
    return replace(settings, serving=replace(serving, watcher=watcher))
