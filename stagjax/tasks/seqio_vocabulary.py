"""One of our vocabularies behind seqio's interface."""

from collections.abc import Iterable, Sequence

import numpy as np
import seqio
import tensorflow as tf

from stagjax.data.vocabulary import BOS, EOS, PAD, Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """One of our vocabularies as seqio wants it.

    TensorFlow hands the text back to Python: its own SentencePiece operator gives other ids for many texts.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        super().__init__()

    @property
    def bos_id(self) -> int:
        """1."""
        return BOS

    @property
    def eos_id(self) -> int:
        """2."""
        return EOS

    @property
    def pad_id(self) -> int:
        """0."""
        return PAD

    @property
    def unk_id(self) -> None:
        """None: nothing is unknown, and seqio would replace ids by it."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.vocabulary.encode(s).tolist()

    def _decode(self, ids: Iterable[int]) -> str:
        return self.vocabulary.decode(list(ids))

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        ids = tf.numpy_function(self._encode_bytes, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _encode_bytes(self, text: bytes | np.ndarray) -> np.ndarray:
        # Eager execution passes an array without dimensions, a graph the bytes themselves.
        return self.vocabulary.encode((text.item() if isinstance(text, np.ndarray) else text).decode())

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        rows = ids[tf.newaxis] if ids.shape.rank == 1 else ids
        texts = tf.numpy_function(self._decode_rows, [rows], tf.string)
        texts.set_shape([None])
        return texts[0] if ids.shape.rank == 1 else texts

    def _decode_rows(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self.vocabulary.decode(row).encode() for row in rows], object)

    def __eq__(self, other: object) -> bool:
        """Compare fingerprints: seqio mixes only tasks whose vocabularies are equal."""
        return isinstance(other, SeqioVocabulary) and self.vocabulary.fingerprint == other.vocabulary.fingerprint

    def __hash__(self) -> int:
        """Hash the fingerprint."""
        return hash(self.vocabulary.fingerprint)
