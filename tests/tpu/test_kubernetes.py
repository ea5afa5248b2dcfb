"""What Kubernetes does to texts and names, written out, and that it comes to nothing."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagjax.errors import UserError
from tpu.cli import main
from tpu.gke import job_set
from tpu.kubernetes import literal
from tpu.options import GkeOptions
from tpu.topologies import find_slice

# What an argument or a variable of a process can hold and a manifest, too.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
PLACE = ["--project=p", "--zone=z", "--cluster=c", "--image=i", "--topology=v5e:4x4", "--dry-run"]


def expanded(text, variables):
    """Return what a container gets: $$ is $, $(NAME) is the variable where there is one, all else stays."""
    out, at = "", 0
    while at < len(text):
        if text.startswith("$$", at):
            out, at = out + "$", at + 2
        elif text.startswith("$(", at) and (end := text.find(")", at)) > 0:
            out, at = out + variables.get(text[at + 2 : end], text[at : end + 1]), end + 1
        else:
            out, at = out + text[at], at + 1
    return out


def test_the_rules_change_a_text_that_is_left_as_it_is():
    assert expanded("$$HOME $(P) $(Q)", {"P": "changed"}) == "$HOME changed $(Q)"


@given(TEXTS, TEXTS)
@example("$$HOME $(P)", "$(STAGJAX_SECRET_FILE)$")
@example("$$$(P)$$", "3e-4")
def test_the_container_gets_what_the_user_wrote(word, value):
    options = GkeOptions("a", "p", "z", "c", "i", find_slice("v5e:4x4"), environment={"P": value})
    job = job_set(options, ["run", word])["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    variables = {}
    for variable in container["env"]:
        variables[variable["name"]] = expanded(variable["value"], variables)
    assert variables["P"] == value
    assert [expanded(text, variables) for text in container["command"]] == ["run", word]


def test_what_no_manifest_holds_is_refused():
    with pytest.raises(UserError, match="is not UTF-8"):
        literal("a\udcff")


@pytest.mark.parametrize(
    ("length", "flags", "message"),
    [
        (40, [], "a node pool would be called"),
        (39, [], "use a --name of at most 38"),
        (37, ["--slices=11", "--config"], "-10, and such a name ends at 40 characters; use a --name of at most 37"),
        (38, ["--slices=11"], "-10, and such a name ends at 40 characters; use a --name of at most 37"),
        (37, ["--slices=1001"], "-1000, and such a name ends at 40 characters; use a --name of at most 35"),
    ],
)
def test_names_that_would_be_too_long_are_refused_first(length, flags, message, capsys):
    name = "a" * length
    if "--config" in flags:  # the longest that fits
        assert main(["gke", "run", f"--name={name}", *PLACE, flags[0], "--", "echo"]) == 0
        return
    for verb in ("create", "run", "delete"):
        line = ["--", "echo"] if verb == "run" else []
        assert main(["gke", verb, f"--name={name}", *PLACE, *flags, *line]) == 2
        out, err = capsys.readouterr()
        assert message in err and err.count("\n") == 1 and not out


def test_vms_of_several_slices_are_named_after_the_resource(capsys):
    place = ["--project=p", "--zone=z", "--topology=v5e:4x4", "--slices=100", "--dry-run"]
    assert main(["vm", "run", f"--name={'a' * 37}", *place, "--", "echo"]) == 0
    assert main(["vm", "run", f"--name={'a' * 38}", *place, "--", "echo"]) == 2
    assert "use a --name of at most 37" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag",
    [
        "--namespace=Team_A",
        "--namespace=",
        "--service-account=run@project.iam.gserviceaccount.com",
        "--reservation=r",
        "--max-run-duration=week",
        "--max-run-duration=8d",
        "--max-run-duration=0s",
        "--slices=99999999",
        "--mount=gs://:/mnt/pile",
        "--mount=pvc::/mnt/pile",
    ],
)
def test_what_google_would_refuse_is_refused_before_it_is_asked(flag, capsys):
    assert main(["gke", "run", "--name=pile-1", *PLACE, flag, "--", "echo"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"tpu: {flag}") and err.count("\n") == 1 and not out


def test_names_and_times_that_are_some(capsys):
    flags = ["--namespace=team-a", "--service-account=a.b-1", "--max-run-duration=6d23h60m"]
    assert main(["gke", "run", "--name=pile-1", *PLACE, *flags, "--mount=gs://b:/mnt/pile", "--", "echo"]) == 0
