"""The studies of a namespace, and which of them may have something to be done: of ten thousand most are over, or wait.

A study is awake from the moment that it is put here until a round found nothing to do for it (`merlin_operator.core.Core.let_rest`). It is woken
by any change of what decides that (`study.STIRRING`), and where it waits for agents by a change of those that have to do with what it wants.
So neither a round nor whoever shows studies looks at what rests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, KeysView, MutableMapping

from merlin_operator.fleet import Audience
from merlin_operator.study import Study

Want = tuple[str, frozenset[tuple[str, str]]]
"""A site, and the queues and shapes that are wanted there."""


class Roll(MutableMapping[str, Study]):
    """All studies by uid; see the module."""

    def __init__(self) -> None:
        self._all: dict[str, Study] = {}
        self._awake: dict[str, Study] = {}
        self._waiting: dict[Want, dict[str, Study]] = {}
        """Those at rest that wait for agents, by what they want."""
        self._wants: dict[str, Want] = {}
        self._audiences: dict[Want, Audience] = {}
        self.departures = 0
        """How often a study was taken out."""

    def __getitem__(self, uid: str) -> Study:
        return self._all[uid]

    def __setitem__(self, uid: str, study: Study) -> None:
        self._lose(uid)
        self._all[uid] = self._awake[uid] = study

    def __delitem__(self, uid: str) -> None:
        self._lose(uid)
        del self._all[uid]
        self.departures += 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, uid: object) -> bool:
        return uid in self._all

    def keys(self) -> KeysView[str]:
        """Return the uids, which can be compared with others at little cost."""
        return self._all.keys()

    def all(self) -> list[Study]:
        """Return the studies of this moment."""
        return list(self._all.values())

    def awake(self) -> list[Study]:
        """Return those of this moment that may have something to be done."""
        return list(self._awake.values())

    def rests(self, study: Study) -> bool:
        """Whether nothing has happened to a study since a round found nothing to do for it."""
        return study.stirred is not None

    def let_rest(self, study: Study, *, wants: Want | None = None, audience: Audience = frozenset()) -> None:
        """Let a study rest until it is stirred; where it ``wants`` agents, or until others than the ``audience`` are there for these."""
        uid = study.ref.uid
        if self._awake.get(uid) is not study:
            return
        del self._awake[uid]
        if wants is not None:
            self._wants[uid] = wants
            self._waiting.setdefault(wants, {})[uid] = study
            self._audiences.setdefault(wants, audience)
        study.stirred = functools.partial(self._stir, study)

    def wake_where(self, audience_of: Callable[[Want], Audience]) -> None:
        """Wake those for which other agents are there than when they came to rest."""
        for wants in [wants for wants, known in self._audiences.items() if audience_of(wants) != known]:
            for study in list(self._waiting[wants].values()):
                self._stir(study)

    def wake(self, uid: str) -> None:
        """Wake a study, if there is one that rests."""
        study = self._all.get(uid)
        if study is not None and study.stirred is not None:
            study.stirred()

    def _stir(self, study: Study) -> None:
        self._lose(study.ref.uid)
        self._awake[study.ref.uid] = study

    def _lose(self, uid: str) -> None:
        """Forget of a study whether it is awake."""
        self._awake.pop(uid, None)
        if (wants := self._wants.pop(uid, None)) is not None:
            waiting = self._waiting[wants]
            del waiting[uid]
            if not waiting:
                del self._waiting[wants], self._audiences[wants]
        if (study := self._all.get(uid)) is not None:
            study.stirred = None
