"""One of several processes that score the same requests together: python -m tests.evaluation.lockstep DECODING."""

import json
import sys

from stagjax.distributed import start_up

start_up()

import jax  # noqa: E402

from stagjax.evaluation.scoring import Scorer, Settings  # noqa: E402
from stagjax.mesh import DecodeMesh, decoding_mesh  # noqa: E402
from stagjax.sharding import stored_shardings  # noqa: E402
from stagjax.tasks.requests import GenerationRequest, LoglikelihoodRequest, RollingRequest  # noqa: E402
from tests.evaluation.models import language_model  # noqa: E402
from tests.variants import VARIANTS  # noqa: E402

REQUESTS = [
    LoglikelihoodRequest("the quick brown", " fox"),
    LoglikelihoodRequest("the quick brown", " dog"),
    RollingRequest("lazy"),
    GenerationRequest("over the", max_new_tokens=4),
    GenerationRequest("lazy dog", max_new_tokens=4),
]


def answers(decoding: str, mesh: DecodeMesh) -> list:
    """Return what a mesh answers, as plain data."""
    lm = language_model(VARIANTS["shared"], mesh)
    # As `stagjax.load` leaves them: of every host, not of this one.
    lm.params = jax.device_put(lm.params, stored_shardings(decoding_mesh(mesh), lm.params))
    scorer = Scorer(lm, Settings(decoding=decoding))
    return [list(answer) for answer in scorer.answer(REQUESTS)]


if __name__ == "__main__":
    print(json.dumps(answers(sys.argv[1], DecodeMesh(data=2))))
