#!/usr/bin/env bash
# Makes a TPU VM ready: Python, an environment with stagjax and its extras, and mounts. Running it again changes nothing.
#
#   setup.sh [--lock FILE] [--mount gs://BUCKET[/PREFIX]:/DIRECTORY | /dev/DISK:/DIRECTORY]...
#   setup.sh --versions        prints what is installed, as --lock takes it: FILE lies beside this script
set -euo pipefail

home=$HOME/stagjax-run
# What libtpu and JAX need there: JAX asks the machine's metadata by `requests`, which the extra gcs brings along.
extras=tpu,gcs

install_packages() {
  # A new VM updates itself in the background and holds the lock of apt for a while.
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq install -y "$@" >/dev/null
}

find_python() {
  local version
  for version in "$@"; do
    if command -v "python$version" >/dev/null && "python$version" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "python$version"
      return
    fi
  done
}

install_python() {
  # Ubuntu 22.04, the base of TPU VMs, has 3.10 alone; uv brings a newer one that needs no administrator.
  python3 -m pip install --user --quiet uv
  "$HOME/.local/bin/uv" python install --quiet "$1"
  "$HOME/.local/bin/uv" python find "$1"
}

versions() {
  "$home/venv/bin/python" -c 'import sys; print("# Python %d.%d" % sys.version_info[:2])'
  "$home/venv/bin/python" -m pip freeze --exclude-editable
}

mount_bucket() {
  local bucket=${1#gs://} directory=$2 only=()
  if ! command -v gcsfuse >/dev/null; then
    local list=/etc/apt/sources.list.d/gcsfuse.list key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
      sudo tee "$list" >/dev/null
    install_packages gcsfuse
  fi
  if [[ $bucket == */* ]]; then
    only=(--only-dir "${bucket#*/}")
  fi
  # Prepared rows never change: what a name says may be remembered for ever.
  gcsfuse --implicit-dirs -o ro --metadata-cache-ttl-secs -1 "${only[@]}" "${bucket%%/*}" "$directory"
}

mount_one() {
  local what=${1%:*} directory=${1##*:}
  if mountpoint -q "$directory"; then
    return
  fi
  sudo mkdir -p "$directory"
  sudo chown "$USER" "$directory"
  case $what in
    gs://*) mount_bucket "$what" "$directory" ;;
    /dev/*) sudo mount -o ro,noload "$what" "$directory" ;;
    *)
      echo "--mount $1: neither gs:// nor /dev/" >&2
      exit 2
      ;;
  esac
}

mounts=()
pythons=(3.12 3.11)
constraint=()
while (($#)); do
  case $1 in
    --mount)
      mounts+=("${2:?--mount needs WHAT:/DIRECTORY}")
      shift 2
      ;;
    --lock)
      lock=$home/${2:?--lock needs FILE}
      constraint=(--constraint "$lock")
      pythons=("$(sed -n 's/^# Python //p' "$lock")")
      shift 2
      ;;
    --versions)
      versions
      exit
      ;;
    *)
      echo "unknown argument $1" >&2
      exit 2
      ;;
  esac
done

rm -rf "$home/source"
mkdir -p "$home/source"
tar -xzf "$home/source.tar.gz" -C "$home/source"
if [[ ! -x $home/venv/bin/python ]]; then
  python=$(find_python "${pythons[@]}")
  if [[ -z $python ]]; then
    python=$(install_python "${pythons[0]}")
  fi
  "$python" -m venv "$home/venv"
fi
"$home/venv/bin/python" -m pip install --quiet --upgrade pip
"$home/venv/bin/python" -m pip install --quiet "${constraint[@]}" --editable "$home/source[$extras]"
for mount in "${mounts[@]}"; do
  mount_one "$mount"
done
"$home/venv/bin/stagjax" --version
