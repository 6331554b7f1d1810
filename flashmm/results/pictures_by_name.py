"""What `result.plot`, `feature.plot` and `tests.plot` have in common: pictures by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from flashmm.exceptions import InputError
from flashmm.slips.answers import no_such_attribute
from flashmm.slips.attributes import PICTURES

__all__ = ["PicturesByName"]


class PicturesByName:
    """A group of pictures, one method each; subclasses say where it stands and of what it is."""

    place: ClassVar[str]
    subject: ClassVar[str]

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse ``result.plot()``, which says too little, and name the pictures."""
        kinds = ", ".join(f"{self.place}.{name}(...)" for name in self._names())
        raise InputError(f"Say which picture: {kinds}.")

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Pictures", own=PICTURES)

    def __repr__(self) -> str:
        return f"<pictures of {self.subject}: {', '.join(self._names())}>"

    def _names(self) -> list[str]:
        classes = [cls for cls in type(self).__mro__ if issubclass(cls, PicturesByName)]
        own = [item for cls in classes for item in vars(cls).items()]
        return [name for name, value in own if callable(value) and not name.startswith("_")]
