"""stagjax as a library: `lm = stagjax.load(workdir)`, then `lm.generate(...)`."""

import functools
import pathlib
from collections.abc import Callable, Sequence

from stagjax import memory
from stagjax.checkpoints.origin import read_model, read_vocabulary
from stagjax.config import Config
from stagjax.data.vocabulary import Vocabulary
from stagjax.decoding.generation import Generation, generate
from stagjax.decoding.loop import MAX_CHUNK, Decoder
from stagjax.decoding.placement import PARALLEL, RECURRENT, check_mode, make_placement
from stagjax.decoding.reference import SequentialDecoder
from stagjax.decoding.sampling import Sampling
from stagjax.errors import unknown
from stagjax.files import directory
from stagjax.mesh import DecodeMesh, decoding_mesh
from stagjax.model.stagformer import Params
from stagjax.sharding import stored_shardings

SEQUENTIAL = "sequential"
ONE_DEVICE = DecodeMesh()


class LanguageModel:
    """A trained model with its vocabulary.

    Attributes:
      config: the whole experiment.
      params: as the checkpoint holds them, float32.
      vocabulary: between text and ids.
      step: training step of the checkpoint.
      mesh: sizes of the mesh that it decodes on.
    """

    def __init__(
        self, config: Config, params: Params, vocabulary: Vocabulary, step: int, mesh: DecodeMesh = ONE_DEVICE
    ):
        self.config, self.params, self.vocabulary, self.step, self.mesh = config, params, vocabulary, step, mesh

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 128,
        *,
        decoding: str = PARALLEL,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
        on_text: Callable[[int, str], None] | None = None,
        chunk: int = MAX_CHUNK,
    ) -> list[Generation]:
        """Continue prompts, all in one batch.

        Args:
          prompts: one text or several.
          max_new_tokens: at most this many for each.
          decoding: "parallel" (all stacks at once), "sequential" (the slow reference) or "recurrent" (shared weights).
          temperature: 0 is greedy.
          top_k: keep the k most probable tokens.
          top_p: keep the most probable tokens that sum to p.
          seed: of the sampling noise.
          stop: strings that end a row.
          on_text: called with (row, text) as text becomes final.
          chunk: tokens a compiled call, at most 32.

        Returns:
          One `Generation` (text, ids, log-probabilities, stop reason) a prompt, in order.

        Raises:
          UserError: a prompt that is too long, values out of range, or a mode that the model cannot be decoded in.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        return generate(
            self.config.model,
            self.decoder(decoding),
            self.vocabulary,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, top_k, top_p),
            seed=seed,
            stop=stop,
            on_text=on_text,
            chunk=chunk,
        )

    @functools.cache  # noqa: B019 (a model lives as long as its decoders)
    def decoder(self, decoding: str) -> Decoder | SequentialDecoder:
        """Return what decodes in a mode, with the parameters in its form; made once.

        Raises:
          UserError: an unknown mode, or one that the model cannot be decoded in.
        """
        if decoding not in (PARALLEL, SEQUENTIAL, RECURRENT):
            raise unknown("decoding", decoding, (PARALLEL, SEQUENTIAL, RECURRENT))
        check_mode(self.config.model, decoding)
        if decoding == SEQUENTIAL:
            return SequentialDecoder(self.config.model, self.params, self.vocabulary.size)
        placement = make_placement(self.config.model, self.mesh, mode=decoding)
        return Decoder(placement, self.params, self.vocabulary.size)


def load(
    workdir: str | pathlib.Path, checkpoint: str | int | None = None, mesh: DecodeMesh | str = ONE_DEVICE
) -> LanguageModel:
    """Load a trained model.

    Args:
      workdir: of `stagjax train`, also in a bucket (gs://), or what `stagjax checkpoint export` wrote.
      checkpoint: "best" (lowest validation loss), "latest", or a step; None is the best, or the latest if no
        checkpoint was validated.
      mesh: to decode on, e.g. "stack=2,tensor=4"; one device by default. It need not be the mesh of training.

    Raises:
      UserError: a mesh that does not fit the devices, no checkpoint there, no such step, or a vocabulary that cannot
        be read or is not the one trained with.
    """
    path = directory(workdir)
    sizes = DecodeMesh.parse(mesh) if isinstance(mesh, str) else mesh
    with memory.told(f"the parameters of {path} do not fit; divide them over more devices (mesh tensor=N)"):
        params, metadata = read_model(path, checkpoint, functools.partial(stored_shardings, decoding_mesh(sizes)))
    vocabulary = read_vocabulary(path, metadata)
    return LanguageModel(Config.from_dict(metadata["config"]), params, vocabulary, metadata["step"], sizes)
