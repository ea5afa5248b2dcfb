"""What a SentencePiece model file says about itself: the bytes of its pieces, and whether it loses text."""

from typing import Any

SPACE = "\u2581"  # How SentencePiece writes a space.


def byte_ids(processor: Any) -> list[int]:
    """Return the id of every byte's piece, in the order of the bytes; shorter than 256 without byte fallback."""
    values = {_byte_value(processor, index): index for index in range(processor.GetPieceSize())}
    return [values[value] for value in range(256) if value in values]


def piece_bytes(processor: Any) -> list[bytes]:
    """Return for every id of a loaded model the UTF-8 bytes that it stands for, b"" for specials."""
    pieces = []
    for index in range(processor.GetPieceSize()):
        if processor.IsByte(index):
            pieces.append(bytes([_byte_value(processor, index)]))
        elif processor.IsControl(index) or processor.IsUnknown(index):
            pieces.append(b"")
        else:
            pieces.append(processor.IdToPiece(index).replace(SPACE, " ").encode())
    return pieces


def fault(processor: Any, model: bytes, specials: tuple[int, int, int]) -> str | None:
    """Return why a model is not one of ours, for the middle of a sentence, or None where nothing is wrong.

    Args:
      processor: `model`, loaded.
      model: the bytes of the file.
      specials: the ids that pad, BOS and EOS must have.
    """
    ids = (processor.pad_id(), processor.bos_id(), processor.eos_id())
    if ids != specials:
        return f"numbers pad, BOS and EOS {ids}, not {specials}"
    if len(byte_ids(processor)) != 256:
        return "loses text: it has no byte fallback"
    if processor.IsUnknown(processor.PieceToId(SPACE)):
        # The bytes of U+2581 would stand for it, and come back as that character.
        return "loses text: it has no piece for a space"
    normalizer = _fields(_fields(model).get(3, b""))
    if normalizer.get(2):
        return "loses text: its normalizer is not the identity"
    for field, default, wanted, text in (
        (3, 1, 0, "adds a dummy prefix"),
        (4, 1, 0, "removes extra whitespace"),
        (5, 1, 1, "does not escape spaces"),
    ):
        if normalizer.get(field, default) != wanted:
            return f"loses text: it {text}"
    return None


def stops_at_newlines(model: bytes, pieces: list[bytes]) -> bool:
    """Return whether a text cut after newlines has the ids of the whole text.

    Byte-pair encoding only ever joins neighbours into a piece: where no piece goes on past a newline, nothing is joined
    across one. (Unigram models choose among whole segmentations, where rounding could decide otherwise.)
    """
    byte_pair = _fields(_fields(model).get(2, b"")).get(3) == 2
    return byte_pair and not any(b"\n" in piece[:-1] for piece in pieces)


def _byte_value(processor: Any, index: int) -> int:
    """Return the byte that a byte piece, "<0xHH>", stands for, -1 for every other piece."""
    return int(processor.IdToPiece(index)[1:-1], 16) if processor.IsByte(index) else -1


def _fields(message: bytes) -> dict[int, int | bytes]:
    """Return the last value of every field of a serialized protocol buffer, by field number.

    `sentencepiece` cannot be asked for a model's settings, and the module that it ships for reading them demands one
    particular release of protobuf. Source: protobuf.dev/programming-guides/encoding; sentencepiece_model.proto.
    """
    fields: dict[int, int | bytes] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        field, wire = divmod(varint(), 8)
        if wire == 0:
            fields[field] = varint()
            continue
        length = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        fields[field] = message[position : position + length]
        position += length
    return fields
