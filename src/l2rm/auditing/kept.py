"""What a cross-fit has finished, on the disk: a killed audit goes on from there."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from l2rm.encoders.pretrained import weights_checksum
from l2rm.errors import InputError
from l2rm.files import remove_leftovers, written_whole
from l2rm.training.run import read_weights


class KeptFolds:
    """Named tensors of each finished fold, a file a fold, in a folder that belongs to one cross-fit.

    Args:
        folder: where; it need not exist. What another cross-fit left there is removed.
        key: tells this cross-fit from all others: data, configuration, seed.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp()) / "folds"
        >>> KeptFolds(folder, "mine").append({"p_values": torch.ones(2)})
        >>> [fold["p_values"].tolist() for fold in KeptFolds(folder, "mine")], len(KeptFolds(folder, "other"))
        ([[1.0, 1.0]], 0)
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        mark = folder / "key.txt"
        if folder.exists() and not (mark.is_file() and mark.read_text(encoding="utf-8") == key):
            shutil.rmtree(folder)
        if not folder.exists():
            with written_whole(mark) as beside:
                beside.write_text(key, encoding="utf-8")
        remove_leftovers(folder)

    def __len__(self) -> int:
        number = 0
        while self._file(number).exists():
            number += 1
        return number

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of each fold.

        Raises:
            InputError: a file is damaged.
        """
        for number in range(len(self)):
            try:
                yield read_weights(self._file(number))
            except InputError as refusal:
                told = str(refusal).removesuffix("; train again")
                raise InputError(f"{told}; delete the folder {self.folder} and audit again") from refusal

    def append(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep one more fold."""
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with written_whole(self._file(len(self))) as beside:
            save_file(whole, beside, metadata={"sha256": weights_checksum(whole)})

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:02d}.safetensors"
