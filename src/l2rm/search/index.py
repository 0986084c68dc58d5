"""`Index`: images and captions that can be searched by words, pictures, items and vectors."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from l2rm.data.features import read_array
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.files import folder_written_whole
from l2rm.search.approximate import HELD_QUERIES, Approximate, Lists, build
from l2rm.search.find import Finder
from l2rm.search.items import Items, image_file
from l2rm.search.queries import Asked, Hit, Query
from l2rm.search.rows import KeptRows, VectorRows, counted_on
from l2rm.search.storage import (
    KINDS,
    Kind,
    Manifest,
    Rows,
    Segment,
    changing,
    read_manifest,
    refuse_folder,
    tidy,
    with_removed,
    write_manifest,
    write_segment,
)

if TYPE_CHECKING:
    from l2rm.search.encoding import ModelEncoder
    from l2rm.similarity.model import RetrievalModel

APPROXIMATE_ABOVE = 100_000
RECALL = 0.95
SHORTLIST = 200
NAMES_SHOWN = 5


class Index:
    """An index folder, opened. Made by `Index.build`; see `l2rm.search.storage` for its files.

    Args:
        folder: what `build` wrote.
        model: must be the one that made the index; None for the copy that lies in the folder.

    Raises:
        InputError: no index, damaged, or made by another model.

    Example:
        >>> index = l2rm.Index("INDEX")  # doctest: +SKIP
        >>> index.search_text("a red kite", k=3)[0].name  # doctest: +SKIP
        'photos/0002.jpg'
    """

    def __init__(self, folder: str | Path, *, model: "RetrievalModel | None" = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self._model = model
        if model is not None:
            self._check(model, "the model that is given")
        self._open()

    @classmethod
    def build(
        cls,
        pairs: Pairs,
        model: "RetrievalModel | None" = None,
        *,
        out: str | Path,
        encoder: dict[str, Any] | None = None,
        caption_encoder: str | None = None,
        dtype: str = "float32",
        approximate_above: int | None = APPROXIMATE_ABOVE,
        recall: float = RECALL,
    ) -> "Index":
        """Encode pairs and write an index of them; an index that is there already is replaced when the new one is done.

        Args:
            pairs: with features.
            model: what encodes them; None where `pairs` have features and caption features in one space already.
            out: the folder.
            encoder: {"name", "grid"} of what made the images' features, so that pictures can be looked for.
            caption_encoder: name of the sentence encoder that made the captions' embeddings, so that words can be
                looked for; one in a folder stays there, and the index needs it there.
            dtype: float32, or float16 for half the size.
            approximate_above: items of a kind above which FAISS searches them approximately; None for never.
            recall: of the exact first ten, that an approximate search is aimed at.

        Raises:
            InputError: no features, vectors of different dimensions, a caption encoder for a model that reads words or
                embeddings of another dimension, a folder with something else in it.
        """
        folder = Path(out)
        if dtype not in ("float32", "float16"):
            raise InputError(f"dtype: {dtype!r} is none of float32, float16")
        if not 0 < recall <= 1:
            raise InputError(f"recall: {recall} is no share; give one above 0 and at most 1")
        refuse_folder(folder)
        with folder_written_whole(folder) as beside:
            (beside / "segments").mkdir()
            if model is None:
                rows: Rows
                rows = vectors = VectorRows(pairs)
                manifest = Manifest(dim=vectors.dim, dtype=dtype, threshold=approximate_above)
            else:
                from l2rm.search.encoding import ModelEncoder, caption_facts, fingerprint
                from l2rm.search.model_folder import write_model_folder

                captions = None if caption_encoder is None else caption_facts(caption_encoder, model)
                made_by = ModelEncoder(model, encoder, captions)
                rows = made_by.rows(pairs)
                write_model_folder(beside / "model", model)
                manifest = Manifest(
                    dim=made_by.dim,
                    dtype=dtype,
                    fingerprint=fingerprint(model),
                    similarity=model.config.similarity,
                    encoder=encoder,
                    caption_encoder=captions,
                    threshold=approximate_above,
                )
            _append(beside, manifest, rows)
            _write_centres(beside)
            index = cls(beside)
            index._approximate(recall)
        return cls(folder, model=model)

    # ---------------------------------------------------------------------------------------------------- searching

    def search(
        self, queries: Sequence[Query], *, target: Kind = "image", k: int = 10, shortlist: int = SHORTLIST
    ) -> list[tuple[Hit, ...]]:
        """Answer several queries at once.

        Args:
            queries: what is looked for.
            target: look among images, or among captions.
            k: results a query.
            shortlist: items that SGR and SAF score, of those that vectors find first.

        Returns:
            For each query at most k hits, best first.

        Raises:
            InputError: a query that cannot be understood, an item that there is not, words for an index of vectors.
        """
        return [
            tuple(self.hit(target, int(number), float(score)) for score, number in zip(*one, strict=True))
            for one in self.find(queries, target=target, k=k, shortlist=shortlist)
        ]

    def search_text(self, text: str, *, k: int = 10, target: Kind = "image") -> tuple[Hit, ...]:
        """What fits words best."""
        return self.search([Query(text=text)], k=k, target=target)[0]

    def search_image(self, picture: "str | Path | bytes", *, k: int = 10, target: Kind = "caption") -> tuple[Hit, ...]:
        """What fits a picture best, given by its file or the bytes of one."""
        content = picture if isinstance(picture, bytes) else Path(picture)
        return self.search([Query(picture=content)], k=k, target=target)[0]

    def search_item(self, kind: Kind, number: int, *, k: int = 10, target: Kind = "image") -> tuple[Hit, ...]:
        """What is like an item of the index, itself left out."""
        query = Query(image=number) if kind == "image" else Query(caption=number)
        return self.search([query], k=k, target=target)[0]

    def search_vector(self, vector: NDArray[Any], *, k: int = 10, target: Kind = "image") -> tuple[Hit, ...]:
        """What has the largest inner product with a vector (D,)."""
        return self.search([Query(vector=np.asarray(vector, dtype=np.float32))], k=k, target=target)[0]

    def find(
        self, queries: Sequence[Query], *, target: Kind = "image", k: int = 10, shortlist: int = SHORTLIST
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Like `search`, but only scores and ids of each query's results."""
        return self._finder.find(queries, target=target, k=k, shortlist=shortlist)

    def find_vectors(
        self, vectors: NDArray[np.float32], *, target: Kind = "image", k: int = 10
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores (Q, k) and ids of the items nearest to (Q, D) vectors, -1 where there are fewer; the quickest way.

        Raises:
            InputError: another dimension, or a value that is not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.manifest.dim:
            raise InputError(f"vector: shape {vectors.shape[1:]}; this index is of {self.manifest.dim} dimensions")
        if not np.isfinite(vectors).all():
            raise InputError("vector: has a NaN or infinite value; compute it again")
        return self.items[target].search(np.ascontiguousarray(vectors, dtype=np.float32), k)

    def warm_up(self) -> None:
        """Load the model and answer once, so that the first who asks does not wait for what is made once."""
        if self.manifest.fingerprint is None:
            return
        if self.by_words:
            self.search_text("words")
        if self.manifest.encoder is not None:
            file = io.BytesIO()
            Image.new("RGB", (8, 8), "white").save(file, format="PNG")
            self.search_image(file.getvalue())

    def hit(self, kind: Kind, number: int, score: float) -> Hit:
        """An item as a result."""
        image = number if kind == "image" else int(self.items["caption"].value(number, "image"))
        if kind == "image":
            captions = tuple(
                self.items["caption"].value(one, "caption") for one in self.captions_of(image)[:NAMES_SHOWN]
            )
        else:
            captions = (str(self.items["caption"].value(number, "caption")),)
        name = str(self.items["image"].value(image, "name"))
        return Hit(kind=kind, id=number, score=score, image=image, name=name, captions=captions)

    def captions_of(self, image: int) -> list[int]:
        """The ids of an image's captions."""
        order, images = self._captions_by_image
        captions = self.items["caption"]
        start, stop = np.searchsorted(images, [image, image + 1])
        return [int(one) for one in np.sort(captions.all_ids[order[start:stop]]) if int(one) in captions]

    def image_path(self, image: int) -> Path | None:
        """The file of an image; None where there is none.

        Raises:
            InputError: no such image.
        """
        return image_file(self.items["image"].value(image, "root"), self.items["image"].value(image, "name"))

    # ----------------------------------------------------------------------------------------------------- changing

    def add(self, pairs: Pairs) -> int:
        """Add images and their captions; an image that is there already, by its name, is replaced with its captions.

        Images that their source only counts ("image 0") replace none; they are counted on where that name is taken.
        What is there stays as it is: the new items become a segment of their own, searched exactly.

        Returns:
            How many images were replaced.

        Raises:
            InputError: as `build`; another process is changing the index.
        """
        with changing(self.folder):
            self._reopen()
            if not pairs.named:
                pairs = replace(pairs, images=counted_on(pairs.images, self.items["image"].column("name").tolist()))
            rows: Rows = VectorRows(pairs) if self.manifest.fingerprint is None else self.encoder.rows(pairs)
            dim = getattr(rows, "dim", self.manifest.dim)
            if dim != self.manifest.dim:
                raise InputError(f"{pairs.source}: vectors of {dim} dimensions; this index has {self.manifest.dim}")
            known = self._ids_by_name
            replaced = [known[name] for name in pairs.images if name in known]
            manifest = with_removed(self.folder, self.manifest, self._without(replaced, []))
            manifest = _append(self.folder, manifest, rows)
            tidy(self.folder, manifest)
        self._reopen()
        return len(replaced)

    def remove(self, *, images: Iterable["int | str"] = (), captions: Iterable[int] = ()) -> tuple[int, int]:
        """Take items out: images by id or name, with their captions, and single captions by id.

        They are marked as gone at once; `compact` frees their space.

        Returns:
            How many images and captions went.

        Raises:
            InputError: one that is not there; then all stay.
        """
        with changing(self.folder):
            self._reopen()
            before = len(self.items["image"]), len(self.items["caption"])
            numbers = [self._image_id(one) for one in images]
            given = list(captions)
            for one in given:
                self.items["caption"].place(one)
            removed = self._without(numbers, given)
            left = len(self.items["image"].all_ids) - len(removed["image"])
            if left == 0:
                raise InputError(f"{self.folder}: nothing would be left of it; delete the folder instead")
            manifest = with_removed(self.folder, self.manifest, removed)
            write_manifest(self.folder, manifest)
            tidy(self.folder, manifest)
        self._reopen()
        return before[0] - len(self.items["image"]), before[1] - len(self.items["caption"])

    def compact(self, *, recall: float = RECALL) -> None:
        """Write all segments as one, without what is gone, and learn approximate indexes anew; ids stay as they are."""
        with changing(self.folder):
            self._reopen()
            generation = self.manifest.generation + 1
            rows = KeptRows(self.items["image"], self.items["caption"])
            manifest = replace(self.manifest, generation=generation, removed={}, approximate={}, segments=())
            name = f"{generation:06d}"
            write_segment(self.folder / "segments" / name, rows, manifest, rows.ids)
            manifest = replace(manifest, segments=(name,))
            write_manifest(self.folder, manifest)
            self._reopen()
            self._approximate(recall)
            tidy(self.folder, self.manifest)
        self._reopen()

    def changed(self) -> bool:
        """Whether the folder holds another state than the one that is open."""
        return read_manifest(self.folder).generation != self.manifest.generation

    def reopen(self) -> "Index":
        """The index as it is on the disk now, with the model that is loaded already."""
        other = Index(self.folder, model=self._model)
        if "encoder" in self.__dict__ and other.manifest.fingerprint == self.manifest.fingerprint:
            other.__dict__["encoder"] = self.__dict__["encoder"]
        return other

    @property
    def by_words(self) -> bool:
        """Whether words can be looked for."""
        return self.manifest.fingerprint is not None and self.encoder.reads_words

    # ------------------------------------------------------------------------------------------------------ details

    @cached_property
    def encoder(self) -> "ModelEncoder":
        """What makes vectors of words and pictures, loaded when it is first used.

        Raises:
            InputError: an index of vectors has none; or the model in the folder is not the one that made the index.
        """
        if self.manifest.fingerprint is None:
            raise InputError(f"{self.folder}: was made of vectors, without a model; search by a vector or an item")
        from l2rm.search.encoding import ModelEncoder

        model = self._model
        if model is None:
            from l2rm.training.run import load

            model = load(self.folder / "model")
            self._check(model, str(self.folder / "model"))
        return ModelEncoder(model, self.manifest.encoder, self.manifest.caption_encoder)

    @cached_property
    def _captions_by_image(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of captions in the order of their images, and these images."""
        images = self.items["caption"].column("image")
        order = np.argsort(images, kind="stable")
        return order, images[order]

    @cached_property
    def _ids_by_name(self) -> dict[str, int]:
        images = self.items["image"]
        return {
            name: int(one)
            for name, one in zip(images.column("name"), images.all_ids, strict=True)
            if int(one) in images
        }

    def _open(self) -> None:
        segments = [Segment.open(self.folder / "segments" / name, self.manifest) for name in self.manifest.segments]
        self.items: dict[Kind, Items] = {}
        for kind in KINDS:
            file = self.manifest.removed.get(kind)
            removed = np.empty(0, dtype=np.int64) if file is None else read_array(self.folder / file)
            facts = self.manifest.approximate.get(kind)
            lists = None if facts is None else Lists(self.folder / facts["file"], facts["probes"])
            self.items[kind] = Items(kind, segments, removed, lists, 0 if facts is None else facts["items"])
        centres = self.folder / "centres.npy"
        kept = read_array(centres) if centres.exists() else None
        self._finder = Finder(self.items, self.manifest.dim, kept, encoder=lambda: self.encoder)

    def _reopen(self) -> None:
        self.manifest = read_manifest(self.folder)
        for name in ("_captions_by_image", "_ids_by_name"):
            self.__dict__.pop(name, None)
        self._open()

    def _check(self, model: "RetrievalModel", told: str) -> None:
        from l2rm.search.encoding import fingerprint

        if (made_by := fingerprint(model)) != self.manifest.fingerprint:
            mine = self.manifest.fingerprint
            raise InputError(
                f"{self.folder}: was made by {'no model' if mine is None else 'model ' + mine[:12]}, but {told} is "
                f"{made_by[:12]}; search with the model that made it, or index again"
            )

    def _image_id(self, image: "int | str") -> int:
        if isinstance(image, str):
            if image not in self._ids_by_name:
                raise InputError(
                    f"{image}: no image of this index has that name; take a name or an id that search shows"
                )
            return self._ids_by_name[image]
        self.items["image"].place(image)
        return image

    def _without(self, images: Sequence[int], captions: Sequence[int]) -> dict[Kind, NDArray[np.int64]]:
        """Removed ids of each kind when these items, and the captions of these images, are gone too."""
        gone = [*captions, *(one for image in images for one in self.captions_of(image))]
        return {
            "image": np.union1d(self.items["image"].removed, np.array(images, dtype=np.int64)),
            "caption": np.union1d(self.items["caption"].removed, np.array(gone, dtype=np.int64)),
        }

    def _approximate(self, recall: float) -> None:
        """Give each kind with many items an approximate index, asked with items of the other kind."""
        found: dict[str, dict[str, Any]] = {}
        for kind in KINDS:
            items, others = self.items[kind], self.items["caption" if kind == "image" else "image"]
            if self.manifest.threshold is None or len(items) <= self.manifest.threshold:
                continue
            drawn = np.random.default_rng(0).permutation(others.ids)[:HELD_QUERIES]
            asked = (Asked(vector=vector, kind=others.kind) for vector in others.vectors(drawn))
            queries = np.stack([self._finder.towards(one, kind) for one in asked])
            segment = Segment.open(self.folder / "segments" / self.manifest.segments[0], self.manifest)
            file = self.folder / f"{kind}-{self.manifest.generation}.faiss"
            made: Approximate = build(file, segment.vectors[kind], segment.ids[kind], queries, target=recall)
            found[kind] = made.__dict__.copy()
        if found:
            self.manifest = replace(self.manifest, approximate=found)
            write_manifest(self.folder, self.manifest)
            self._open()


def _append(folder: Path, manifest: Manifest, rows: Rows) -> Manifest:
    """Write rows as a new segment, and make them count."""
    generation = manifest.generation + 1
    name = f"{generation:06d}"
    write_segment(folder / "segments" / name, rows, manifest)
    counts = {"image": len(rows.names), "caption": len(rows.captions)}
    next_id: dict[str, int] = {kind: manifest.next_id[kind] + counts[kind] for kind in KINDS}
    manifest = replace(manifest, generation=generation, next_id=next_id, segments=(*manifest.segments, name))
    write_manifest(folder, manifest)
    return manifest


def _write_centres(folder: Path) -> None:
    """The mean vector of each kind, where vectors only shortlist."""
    manifest = read_manifest(folder)
    if manifest.similarity in ("cosine", "clip"):
        return
    segment = Segment.open(folder / "segments" / manifest.segments[0], manifest)
    centres = np.stack([segment.vectors[kind].mean(axis=0, dtype=np.float64) for kind in KINDS])
    np.save(folder / "centres.npy", centres.astype(np.float32))
