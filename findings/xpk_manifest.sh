#!/usr/bin/env bash
# xpk 1.16.0 puts --env and --command into its JobSet's YAML as they are, unquoted:
#   1. a value with a double quote (--env='SAY=say "hi"') makes a manifest that is no YAML, written with exit status 0;
#   2. SIGTERM, which Kubernetes sends to the pod's first process, reaches the command up to 5 s late: that process is a
#      shell in `sleep 5`, which runs its trap afterwards; a spot pod has 15 s in all.
# Seen: 1. "expected <block end>, but found <scalar>"; 2. 4.8 s. Exits with another status than 0 once
# either is different.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME=$work PIP_DISABLE_PIP_VERSION_CHECK=1
"${PYTHON:-python3}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip install --quiet)
# Its own pins take pip more than ten minutes to resolve; a dry run needs these, whose releases differ from the pins in part.
"${pip[@]}" --no-deps xpk==1.16.0 argcomplete==3.6.3 certifi==2026.10.19.post1 charset-normalizer==3.5.3 \
  cloud-accelerator-diagnostics==0.1.1 docker==7.1.0 durationpy==0.11 google-api-core==2.44.0 google-auth==2.63.0 \
  google-cloud-bigquery==3.47.0 google-cloud-common==1.11.0 google-cloud-core==2.8.0 google-cloud-filestore==1.18.0 \
  google-cloud-resource-manager==1.19.0 google-cloud-storage==3.17.1 google-crc32c==1.9.0 google-resumable-media==2.11.0 \
  googleapis-common-protos==1.76.0 grpc-google-iam-v1==0.14.6 grpcio==1.85.3 grpcio-status==1.85.3 idna==3.20 \
  Jinja2==3.1.6 kubernetes==35.0.0 MarkupSafe==3.0.4 oauthlib==4.0.1 opentelemetry-api==1.45.2 packaging==26.4 \
  proto-plus==1.29.0 protobuf==7.36.2 pyasn1==0.6.5 pyasn1_modules==0.4.2 python-dateutil==2.9.0.post0 PyYAML==6.0.2 \
  requests==2.34.2 requests-oauthlib==2.0.0 ruamel.yaml==0.18.10 setuptools-scm==10.3.4 six==1.17.0 tabulate==0.9.0 \
  typing_extensions==4.16.0 urllib3==2.5.0 vcs-versioning==2.6.0 websocket-client==1.9.2 cffi==2.1.1 \
  cryptography==50.0.2 pycparser==3.12 google-cloud-aiplatform==2.7.0 gviz-api==1.10.0
manifest() {
  "$work/venv/bin/xpk" workload create --cluster=c --workload=w --project=p --zone=us-central1-a --tpu-type=v6e-4x4 \
    --docker-image=i --dry-run --skip-validation --output-manifest-file="$work/$1" "${@:2}" >"$work/said"
}
load() {
  "$work/venv/bin/python" -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["spec"]["replicatedJobs"][0]
    ["template"]["spec"]["template"]["spec"]["containers"][0]["command"][2])' "$work/$1"
}

manifest plain --command=true --env='SAY=say hi'
load plain >"$work/shell"
manifest quoted --command=true --env='SAY=say "hi"'
if load quoted 2>"$work/why"; then
  echo "1. the manifest is YAML now"
  exit 1
fi
echo "1. $(grep -m 1 "but found" "$work/why")"

manifest signal --command="exec $work/venv/bin/python $work/wait.py"
cat >"$work/wait.py" <<'EOF'
import pathlib, signal, sys, time
work = pathlib.Path(sys.argv[0]).parent
def told(*_):
    (work / "told").write_text(str(time.time()))
    sys.exit(75)
signal.signal(signal.SIGTERM, told)
(work / "ready").touch()
time.sleep(60)
EOF
load signal >"$work/shell"
bash "$work/shell" >/dev/null &
until [[ -e $work/ready ]]; do sleep 0.1; done
sent=$(date +%s.%N)
kill -TERM $!
wait $! || true
late=$("$work/venv/bin/python" -c 'import sys; print(float(open(sys.argv[1]).read()) - float(sys.argv[2]))' "$work/told" "$sent")
echo "2. SIGTERM reached the command ${late:0:4} s after it was sent"
"$work/venv/bin/python" -c 'import sys; sys.exit(float(sys.argv[1]) < 1)' "$late"
