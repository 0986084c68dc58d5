"""Queries become vectors, vectors find items, and where vectors only shortlist, the model ranks what they found."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l2rm.errors import InputError
from l2rm.search.items import Items
from l2rm.search.queries import Asked, Query
from l2rm.search.storage import KINDS, Kind

if TYPE_CHECKING:
    from l2rm.search.encoding import ModelEncoder


class Finder:
    """Finds among the items of one state of an index.

    Args:
        items: of each kind.
        dim: of their vectors.
        centres: (2, D) the mean vector of each kind, where vectors only shortlist; None where they rank.
        encoder: gives what makes vectors of words and pictures, when it is first needed.
    """

    def __init__(
        self,
        items: Mapping[Kind, Items],
        dim: int,
        centres: NDArray[np.float32] | None,
        *,
        encoder: "Callable[[], ModelEncoder]",
    ) -> None:
        self.items = items
        self._dim = dim
        self._centres = centres
        self._encoder = encoder

    def find(
        self, queries: Sequence[Query], *, target: Kind, k: int, shortlist: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Scores and ids of each query's results; see `Index.search`."""
        if k < 1:
            raise InputError(f"k: {k} results are none; ask for at least 1")
        if target not in KINDS:
            raise InputError(f"target: {target!r} is neither image nor caption")
        asked = self._asked(queries)
        vectors = np.stack([self.towards(one, target) for one in asked])
        ranked = [self._ranks(one, target) for one in asked]
        wanted = max(
            max(shortlist, k) if ranks else k + (one.itself is not None)
            for one, ranks in zip(asked, ranked, strict=True)
        )
        scores, ids = self.items[target].search(vectors, wanted)
        found = []
        for one, ranks, its_scores, its_ids in zip(asked, ranked, scores, ids, strict=True):
            there = its_ids >= 0
            if one.itself is not None and one.kind == target:
                there &= its_ids != one.itself
            kept = its_scores[there], its_ids[there]
            if ranks and len(kept[1]):
                kept = self._ranked(one, kept[1], target)
            found.append((kept[0][:k], kept[1][:k]))
        return found

    def towards(self, one: Asked, target: Kind) -> NDArray[np.float32]:
        """The vector that finds items of the other kind: without what all queries of its kind have in common."""
        if self._centres is None or one.kind is None or one.kind == target:
            return one.vector
        centred: NDArray[np.float32] = one.vector - self._centres[KINDS.index(one.kind)]
        return centred

    def _asked(self, queries: Sequence[Query]) -> list[Asked]:
        """Queries as vectors; all words are read at once."""
        texts = [number for number, query in enumerate(queries) if query.text is not None]
        asked: dict[int, Asked] = {}
        if texts:
            encoded = self._encoder().texts([queries[number].text or "" for number in texts])
            vectors = self._encoder().vectors(encoded, "caption")
            for row, number in enumerate(texts):
                one = encoded.take(slice(row, row + 1))
                asked[number] = Asked(vector=vectors[row], kind="caption", encoded=one)
        for number, query in enumerate(queries):
            given = [
                name for name in ("text", "picture", "image", "caption", "vector") if getattr(query, name) is not None
            ]
            if len(given) != 1:
                raise InputError(f"query: {', '.join(given) or 'nothing'} is given; give one of them")
            if number not in asked:
                asked[number] = self._asked_otherwise(query)
        return [asked[number] for number in range(len(queries))]

    def _asked_otherwise(self, query: Query) -> Asked:
        if query.picture is not None:
            encoded = self._encoder().picture(query.picture)
            return Asked(vector=self._encoder().vectors(encoded, "image")[0], kind="image", encoded=encoded)
        if query.vector is not None:
            vector = np.asarray(query.vector, dtype=np.float32)
            if vector.shape != (self._dim,) or not np.isfinite(vector).all():
                raise InputError(f"vector: not {self._dim} finite numbers, as this index has them")
            return Asked(vector=vector, kind=None)
        kind: Kind = "image" if query.image is not None else "caption"
        number = query.image if query.image is not None else query.caption
        assert number is not None
        return Asked(vector=self.items[kind].vector(number), kind=kind, itself=number)

    def _ranks(self, one: Asked, target: Kind) -> bool:
        """Whether the model scores what vectors have found: between kinds, where vectors only shortlist."""
        return self._centres is not None and one.kind is not None and one.kind != target

    def _ranked(
        self, one: Asked, ids: NDArray[np.int64], target: Kind
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The shortlist in the order of the model's scores."""
        encoded, images = one.encoded, self.items["image"]
        if target == "image":
            if encoded is None:
                encoded = self._encoder().texts([self.items["caption"].value(one.itself or 0, "caption")])
            scores = self._encoder().rank_images(encoded, images.vectors(ids), images.regions(ids))
        else:
            if encoded is None:
                itself = np.array([one.itself])
                encoded = self._encoder().kept_images(images.vectors(itself), images.regions(itself))
            scores = self._encoder().rank_captions(
                encoded, [self.items["caption"].value(int(number), "caption") for number in ids]
            )
        order = np.lexsort((ids, -scores))
        return scores[order], ids[order]
