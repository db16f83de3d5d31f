"""The instructions of a store through the text encoder, into one file, one copy of each."""

import sys

from pipeline.extract.encoders.text import TextEncoder
from pipeline.store.errors import StoreError
from pipeline.store.language import LanguageTable, read_language, write_language
from pipeline.store.layout import StoreLayout


def store_language(layout: StoreLayout, encoder: TextEncoder | None) -> int:
    """Write the file for the clips that are committed now; what an earlier run encoded is taken from its file.

    Says on stderr how many distinct instructions were longer than the encoder's limit and were cut.

    Returns:
        That number; 0 without an encoder.
    """
    if encoder is None:
        return 0
    texts = {row.text for sidecar in layout.sidecars() for row in sidecar.rows}
    if not texts:
        return 0
    try:
        known = read_language(layout)
    except StoreError:
        known = None  # none yet, or damaged: made anew
    before = {} if known is None else known.encoded()
    truncated = [text for text in sorted(texts) if encoder.too_long(text)]
    table = LanguageTable.of(
        {text: before[text] if text in before else encoder.encode(text) for text in texts},
        model=encoder.record,
        limit=encoder.limit,
        truncated=truncated,
    )
    write_language(layout, table)
    if truncated:
        sys.stderr.write(
            f"warning: {len(truncated)} of {len(texts)} distinct instructions are longer than {encoder.limit} tokens "
            f"and were cut there (text.tokens), for example {truncated[0][:60]!r}\n"
        )
    return len(truncated)
