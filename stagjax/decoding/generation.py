"""From prompts to text: batches of different lengths, stop strings, and what is told of each row while it grows."""

import codecs
import collections
import dataclasses
import zlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from stagjax import memory
from stagjax.config import ModelConfig
from stagjax.data.vocabulary import BOS, EOS, Vocabulary
from stagjax.decoding.loop import MAX_CHUNK, Decoder, decode_memory
from stagjax.decoding.reference import SequentialDecoder
from stagjax.decoding.sampling import Sampling
from stagjax.errors import UserError
from stagjax.rules import COUNT, SEED, Number

END, STOP, LENGTH = "end of document", "stop string", "max_new_tokens"


@dataclasses.dataclass
class Generation:
    """The continuation of one prompt.

    Attributes:
      prompt: as given.
      text: what follows it, up to the end of the document or before the stop string.
      ids: tokens drawn, with the one that ended the row.
      logprobs: natural-log probability of each id under the model's own distribution.
      stop_reason: "end of document", "stop string" or "max_new_tokens".
    """

    prompt: str
    text: str
    ids: list[int]
    logprobs: list[float]
    stop_reason: str


def generate(
    config: ModelConfig,
    decoder: Decoder | SequentialDecoder,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[int, str], None] | None = None,
    chunk: int = MAX_CHUNK,
) -> list[Generation]:
    """Continue all prompts in one batch.

    Args:
      config: the model's shape, for its length.
      decoder: what draws the tokens.
      vocabulary: between text and ids.
      prompts: each becomes BOS and its pieces.
      max_new_tokens: for each row; a row ends earlier at the end of its document or at a stop string.
      sampling: how tokens are drawn.
      seed: with a row's own prompt it decides the row's noise, 0 to 2**32-1; copies of one prompt differ.
      stop: a row ends once its text contains one of these, and is cut before it.
      on_text: called with (row, text) for every piece of text that is final.
      chunk: tokens drawn by one compiled call, at most 32; the result does not depend on it.

    Raises:
      UserError: a prompt that does not leave room for `max_new_tokens`, or values out of range.
    """
    sampling.check(vocabulary.size)
    COUNT.check("max_new_tokens", max_new_tokens)
    SEED.check("seed", seed)
    Number(int, 1, MAX_CHUNK).check("chunk", chunk)
    if any(not text for text in stop):
        raise UserError("a stop string is empty; it would end every row at once")
    if not prompts:
        return []
    prompt_ids = [_prompt_ids(config, vocabulary, prompt, max_new_tokens) for prompt in prompts]
    return continue_ids(
        decoder,
        vocabulary,
        prompts,
        prompt_ids,
        row_keys(prompt_ids, seed),
        max_length=config.max_length,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        on_text=on_text,
        chunk=chunk,
    )


def continue_ids(
    decoder: Decoder | SequentialDecoder,
    vocabulary: Vocabulary,
    prompts: Sequence[str],
    prompt_ids: Sequence[Sequence[int]],
    keys_B: jax.Array,
    *,
    max_length: int,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    stop_after_text: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    chunk: int = MAX_CHUNK,
) -> list[Generation]:
    """Continue prompts that are ids already and fit, all in one batch; arguments as for `generate`, but for these.

    Args:
      decoder: what draws the tokens.
      vocabulary: between text and ids.
      prompts: the texts, for the results.
      prompt_ids: ids of each, BOS among them.
      keys_B: one PRNG key a row.
      max_length: of the model.
      max_new_tokens: for each row.
      sampling: how tokens are drawn.
      stop: strings that end a row.
      stop_after_text: they only count from the first character on that is no white space.
      on_text: called with (row, text).
      chunk: tokens drawn by one compiled call.
    """
    tokens_BT, starts_B = pad_left(prompt_ids, max_length)
    rows = [_Row(vocabulary, [text.encode() for text in stop], stop_after_text) for _ in prompts]
    with memory.told(decode_memory(len(prompts), tokens_BT.shape[1] + max_new_tokens)):
        chunks = decoder.chunks(tokens_BT, starts_B, max_new_tokens, sampling, keys_B, EOS, chunk)
        drawn = next(chunks, None)
        while drawn is not None:
            for index, row in enumerate(rows):
                row.extend(drawn.tokens_nB[:, index], drawn.logprobs_nB[:, index])
                text = row.new_text()
                if text and on_text:
                    on_text(index, text)
            try:
                drawn = chunks.send(np.array([row.stop_reason is not None for row in rows]))
            except StopIteration:
                drawn = None
    results = []
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        text = row.new_text(final=True)
        if text and on_text:
            on_text(index, text)
        results.append(Generation(prompt, row.text, row.ids, row.logprobs, row.stop_reason or LENGTH))
    return results


def pad_left(prompt_ids: Sequence[Sequence[int]], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Align prompts at their ends: (tokens_BT, starts_B); T is a power of two where the model is that long.

    Few lengths mean few compilations.
    """
    longest = max(map(len, prompt_ids))
    T = max(longest, min(max_length, 1 << max(4, (longest - 1).bit_length())))
    tokens_BT = np.zeros((len(prompt_ids), T), np.int32)
    for row_T, ids in zip(tokens_BT, prompt_ids, strict=True):
        row_T[T - len(ids) :] = ids
    return tokens_BT, np.array([T - len(ids) for ids in prompt_ids], np.int32)


def row_keys(prompt_ids: Sequence[Sequence[int]], seed: int) -> jax.Array:
    """Return one PRNG key a row, from the seed, the row's prompt and how many equal prompts stand before it."""
    seen: collections.Counter[bytes] = collections.Counter()
    keys = []
    for ids in prompt_ids:
        content = np.asarray(ids, np.int32).tobytes()
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(content))
        keys.append(jax.random.fold_in(key, seen[content]))
        seen[content] += 1
    return jax.numpy.stack(keys)


def _prompt_ids(config: ModelConfig, vocabulary: Vocabulary, prompt: str, max_new_tokens: int) -> list[int]:
    shown = ascii(prompt if len(prompt) <= 40 else prompt[:37] + "...")
    try:
        ids = [BOS, *map(int, vocabulary.encode(prompt))]
    except ValueError as error:
        raise UserError(f"prompt {shown} is not Unicode text: {error}; give valid UTF-8") from error
    if len(ids) + max_new_tokens > config.max_length:
        raise UserError(
            f"prompt {shown} has {len(ids)} tokens with BOS; with max_new_tokens={max_new_tokens} that is over "
            f"model.max_length={config.max_length}; shorten the prompt, or ask for at most "
            f"{max(config.max_length - len(ids), 0)}"
        )
    return ids


class _Row:
    """One row as it grows: its ids, and its bytes up to a stop string."""

    def __init__(self, vocabulary: Vocabulary, stop: list[bytes], stop_after_text: bool = False):
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.stop_reason: str | None = None
        self._vocabulary, self._stop, self._stop_after_text = vocabulary, stop, stop_after_text
        self._bytes = bytearray()
        self._told = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def text(self) -> str:
        return self._bytes.decode("utf-8", errors="replace")

    def extend(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        """Take new tokens until the row ends."""
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            if self.stop_reason is not None:
                return
            self.ids.append(token)
            self.logprobs.append(logprob)
            if token == EOS:
                self.stop_reason = END
                return
            before = len(self._bytes)
            self._bytes += self._vocabulary.pieces[token]
            first = len(self._bytes) - len(self._bytes.lstrip()) if self._stop_after_text else 0
            found = [self._bytes.find(text, max(first, before - len(text) + 1)) for text in self._stop]
            if any(index >= 0 for index in found):
                del self._bytes[min(index for index in found if index >= 0) :]
                self.stop_reason = STOP

    def new_text(self, final: bool = False) -> str:
        """Return text that is certain by now; bytes that may begin a stop string or end mid-character wait."""
        final = final or self.stop_reason is not None
        held = 0 if final else max((len(text) for text in self._stop), default=1) - 1
        until = max(self._told, len(self._bytes) - held)
        text = self._decoder.decode(bytes(self._bytes[self._told : until]), final=final)
        self._told = until
        return text
