"""What is put into the JobSet that xpk writes, in the shape of version 1.16.0."""

import os
import stat

import pytest

from stagjax.errors import RunFailed, UserError
from tpu import xpk
from tpu.gke import job_set
from tpu.options import GkeOptions
from tpu.shell import Shell
from tpu.topologies import find_slice

LINE = ["stagjax", "train", "--prompt=$$HOME $(P)\nand so on"]

# What xpk decides for its cluster, and the ends that it does not join to ours: a shell around the command, 42.
WRITTEN = """
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: pile-1
  labels: {kueue.x-k8s.io/queue-name: multislice-queue}
spec:
  replicatedJobs:
  - name: slice-job
    replicas: 2
    template:
      spec:
        podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {values: [42, 127]}}]}
        template:
          metadata: {annotations: }
          spec:
            priorityClassName: medium
            containers:
            - name: stagjax
              image: an-image
              env:
              command: [bash, -c, "(stagjax) & wait"]
              volumeMounts: [{mountPath: /dev/shm, name: dshm-2}]
            serviceAccountName:
            volumes: [{emptyDir: {medium: Memory}, name: dshm-2}]
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put an xpk on the path that writes `text` where it is told to, and return where its arguments are."""

    def install(text):
        fake = tmp_path / "xpk"
        (tmp_path / "text").write_text(text)
        fake.write_text(
            f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/words\n'
            f'for word; do [[ $word == --output-manifest-file=* ]] && cp {tmp_path}/text "${{word#*=}}"; done\n'
        )
        fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "words"

    return install


def options(topology="v5p:4x4x16", **fields):
    return GkeOptions("pile-1", "p", "z", "c", "an-image", find_slice(topology), 2, **fields)


def test_the_pod_is_ours_and_the_rest_is_xpks(program):
    words = program(WRITTEN)
    wanted = options(service_account="trainer", namespace="runs", environment={"A": 'say "$B"'})
    own = job_set(wanted, LINE, "pile-1-secret-1")
    made = xpk.manifest(wanted, Shell(), own)
    assert made["metadata"] == {
        "name": "pile-1",
        "namespace": "runs",
        "labels": {"kueue.x-k8s.io/queue-name": "multislice-queue"},
    }
    (job,) = made["spec"]["replicatedJobs"]
    ours = own["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["replicas"] == 2 and job["template"]["spec"]["podFailurePolicy"] == ours["podFailurePolicy"]
    pod, our_pod = job["template"]["spec"]["template"]["spec"], ours["template"]["spec"]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("medium", "trainer")
    (container,), (our_container,) = pod["containers"], our_pod["containers"]
    assert container["command"] == our_container["command"] and container["command"][2] != LINE[2]
    assert container["env"] == our_container["env"]
    assert [volume["name"] for volume in pod["volumes"]] == ["dshm-2", "run-secret"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/dev/shm", "/etc/stagjax/secret"]
    asked = words.read_text().splitlines()
    # v5p-512 alone would be 4x8x8.
    assert {"--namespace=runs", "--docker-name=stagjax", "--tpu-type=v5p-4x4x16", "--num-slices=2"} <= set(asked)
    assert "--dry-run" in asked  # it creates nothing itself


def test_without_an_account_it_is_the_namespaces(program):
    program(WRITTEN)
    made = xpk.manifest(options(), Shell(), job_set(options(), LINE))
    spec = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "default"


@pytest.mark.parametrize("text", ["", "kind: [", WRITTEN.replace("name: stagjax", "name: another"), "kind: JobSet"])
def test_another_manifest_is_not_guessed_at(program, text):
    program(text)
    with pytest.raises(RunFailed, match=r"no JobSet like that of version 1\.16\.0 .* use --using=kubectl"):
        xpk.manifest(options(), Shell(), job_set(options(), LINE))


@pytest.mark.parametrize("name", ["v5e:1x1", "v5e:2x2"])
def test_slices_that_xpk_does_not_have(name, tmp_path):
    with pytest.raises(UserError, match=f"--topology={name}: xpk 1.16.0 has v5e from 2x4 on"):
        xpk.command(options(name), tmp_path)
