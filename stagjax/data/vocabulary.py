"""Vocabularies: text to ids and back without loss, by UTF-8 bytes or by a SentencePiece model."""

import contextlib
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np

from stagjax.data import sentencepiece_model
from stagjax.errors import RunFailed, UserError
from stagjax.files import FULL

PAD, BOS, EOS = 0, 1, 2
UNKNOWN = 3  # SentencePiece insists on an id for it; with byte fallback it never occurs in encoded text.

# SentencePiece writes a space as U+2581, so a real U+2581 would come back as a space, and NUL ends strings in C.
# Neither is shown to it: their UTF-8 bytes become byte pieces.
_PAST_PROCESSOR = re.compile("[\u2581\0]")
# The trainer drops, without a word, every sentence that holds its own marker U+2585, so sentences end there too.
_PAST_TRAINER = re.compile("[\u2581\u2585\0]+")
# The trainer drops sentences above 4192 bytes, and words above 65535 characters are more than it can hold. 1000
# characters are at most 4000 bytes.
_LONGEST_SENTENCE = 1000
# Characters after which a text is cut at the next newline. Encoding costs more a token in long texts: 4.2 MB/s whole
# and 5.3 cut with 32k pieces, 3.6 and 4.2 with 256k (standard library, one core; 50 to 200 characters are alike).
_CHUNK = 100


class Vocabulary:
    """A lossless map between text and ids: pad 0, BOS 1, EOS 2, then pieces that stand for UTF-8 bytes.

    Attributes:
      name: for people; two vocabularies of one name may differ.
      fingerprint: sha256 in hexadecimal, equal for equal vocabularies.
      pieces: for each id the bytes that it stands for, b"" for specials.
      byte_lengths: int32 [size], the lengths of `pieces`.
    """

    def __init__(self, name: str, pieces: list[bytes], fingerprint: str):
        self.name = name
        self.pieces = pieces
        self.fingerprint = fingerprint
        self.byte_lengths = np.array([len(piece) for piece in pieces], np.int32)

    @property
    def size(self) -> int:
        """Number of ids, specials included."""
        return len(self.pieces)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, int32 [tokens], without BOS and EOS.

        Raises:
          ValueError: `text` holds lone surrogates, which have no UTF-8.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`; specials vanish, and bytes that are not UTF-8 become U+FFFD.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        ids = np.asarray(ids)
        if not ids.size:
            return ""
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.size:
            raise ValueError(
                f"ids run from {low} to {high}, but those of vocabulary {self.name!r} from 0 to {self.size - 1}"
            )
        return b"".join([self.pieces[index] for index in ids.tolist()]).decode(errors="replace")


class ByteVocabulary(Vocabulary):
    """Every UTF-8 byte is an id: byte b is id 3 + b. Needs no file, so every machine has it."""

    def __init__(self):
        pieces = [b"", b"", b"", *(bytes([value]) for value in range(256))]
        super().__init__("bytes", pieces, hashlib.sha256(b"pad 0, BOS 1, EOS 2, byte b is 3 + b").hexdigest())

    def encode(self, text: str) -> np.ndarray:
        """Return 3 + byte for every UTF-8 byte of `text`, int32 [bytes]; raises as `Vocabulary.encode`."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 3


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model that loses nothing, read with Python `sentencepiece`.

    TensorFlow's operator for the same model gives other ids for many texts and is never used.

    Raises:
      UserError: the file cannot be read, is no SentencePiece model, numbers its specials otherwise, or loses text.
    """

    def __init__(self, path: str | os.PathLike[str]):
        import sentencepiece  # Here, because most runs use bytes.

        try:
            model = pathlib.Path(path).read_bytes()
        except OSError as error:
            raise _refused(path, f"cannot be read ({error.strerror})") from None
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise _refused(path, "is not a SentencePiece model") from None
        fault = sentencepiece_model.fault(self._processor, model, (PAD, BOS, EOS))
        if fault:
            raise _refused(path, fault)
        pieces = sentencepiece_model.piece_bytes(self._processor)
        super().__init__(pathlib.Path(path).name, pieces, hashlib.sha256(model).hexdigest())
        self._byte_ids = sentencepiece_model.byte_ids(self._processor)
        self._cut = sentencepiece_model.stops_at_newlines(model, pieces)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, int32 [tokens]; raises as `Vocabulary.encode`."""
        text.encode()  # Python's error for surrogates; sentencepiece's is about a cast.
        ids: list[int] = []
        start = 0
        for match in _PAST_PROCESSOR.finditer(text):
            ids += self._encode(text[start : match.start()])
            ids += [self._byte_ids[value] for value in match.group().encode()]
            start = match.end()
        ids += self._encode(text[start:])
        return np.array(ids, np.int32)

    def _encode(self, text: str) -> list[int]:
        if not self._cut:
            return self._processor.encode(text)
        ids: list[int] = []
        start = 0
        while start < len(text):
            end = text.find("\n", start + _CHUNK) + 1 or len(text)
            ids += self._processor.encode(text[start:end])
            start = end
        return ids


def load_vocabulary(spec: str) -> Vocabulary:
    """Return the vocabulary that `data.vocabulary` names: "bytes", or the path of a SentencePiece model.

    Raises:
      UserError: a model that is absent, unreadable or not lossless.
    """
    return ByteVocabulary() if spec == "bytes" else SentencePieceVocabulary(spec)


def train_sentencepiece(texts: Iterable[str], size: int, output: str | os.PathLike[str]) -> SentencePieceVocabulary:
    """Train a lossless byte-pair vocabulary and write it to `output`, all of it or nothing.

    Sentences are single lines with their newline, so that a piece may end in a newline but never goes on past one.

    Args:
      texts: documents; all their lines are held in memory.
      size: number of ids, including 3 specials, the unknown and 256 bytes.
      output: the file to write; its directory is made.

    Raises:
      UserError: `output` exists or cannot be written, or the texts do not yield `size` pieces (with what they yield).
      RunFailed: the disk is full.
    """
    if size <= UNKNOWN + 256:
        raise UserError(f"--size={size} is below the {UNKNOWN + 1} specials and 256 bytes; use 512 or more")
    refuse_existing(output)
    output = pathlib.Path(output)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    sentences = _Sentences(texts)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            _train(iter(sentences), size, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output)
    except OSError as error:
        if sentences.error is None and error.errno in FULL:
            raise RunFailed(
                f"--output={output} cannot be written ({error.strerror}); free some space and start again"
            ) from None
        raise sentences.error or UserError(
            f"--output={output} cannot be written ({error.strerror}); choose another place"
        ) from None
    except RuntimeError as error:
        raise sentences.error or _training_error(size, str(error)) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return SentencePieceVocabulary(output)


def refuse_existing(output: str | os.PathLike[str]) -> None:
    """Raise `UserError` if there is something at `output`: rows and checkpoints may depend on it."""
    if os.path.lexists(output):
        raise UserError(
            f"--output={os.fspath(output)} exists and is never overwritten; remove it or choose another name"
        )


def _train(sentences: Iterator[str], size: int, file: IO[bytes]) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=file,
        model_type="bpe",
        vocab_size=size,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNKNOWN,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        # Indentation: without such pieces Python source takes 1.6 times as many ids (32k pieces).
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )


class _Sentences:
    """Feeds the trainer, and keeps the exception of a source, of which the trainer would pass on only the text."""

    def __init__(self, texts: Iterable[str]):
        self._texts = texts
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                for line in text.split("\n"):
                    for part in _PAST_TRAINER.split(line + "\n"):
                        for start in range(0, len(part), _LONGEST_SENTENCE):
                            # The trainer's wrapper strips newlines from a sentence's end. A space after them saves
                            # them, and being a word of its own it is joined to nothing.
                            yield part[start : start + _LONGEST_SENTENCE] + " "
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


def _training_error(size: int, message: str) -> Exception:
    if match := re.search(r"too high .*<= (\d+)", message):
        return UserError(f"--size={size} is more than this text yields; use {match[1]} or less, or more text")
    if match := re.search(r"required_chars\. \S+ vs (\d+)", message):
        return UserError(
            f"--size={size} is below the specials, bytes and characters of this text; use {match[1]} or more"
        )
    if "sentences_.empty()" in message:
        return UserError("there is no text to train a vocabulary on; look at --source, --path and --validation-percent")
    return RuntimeError(message)


def _refused(path: str | os.PathLike[str], fault: str) -> UserError:
    return UserError(
        f"data.vocabulary={os.fspath(path)!r} {fault}; use 'bytes' or a model made by `stagjax data vocab`"
    )
