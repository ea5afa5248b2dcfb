#!/usr/bin/env bash
# One worker's share of a run: the command in the background, its log, its exit status.
#
#   worker.sh start RUN COMMAND...      refuses while RUN is under way here; RUN.secret lies beside this script
#   worker.sh status RUN                one line: stagjax-worker HOST running|absent, or ended STATUS SECONDS LAST_LINE
#   worker.sh stop RUN SIGNAL SECONDS   signal the command; kill it if it is there after SECONDS
#   worker.sh log RUN                   print the log of all attempts
#
# A lock, not a process id, says whether the run is alive: ids are used again after a reboot.
set -euo pipefail

home=${STAGJAX_RUN_HOME:-$HOME/stagjax-run}
verb=${1:?start, status, stop or log}
run=${2:?the name of the run}
dir=$home/runs/$run
mkdir -p "$dir"
shift 2

alive() {
  ! flock --nonblock --shared "$dir/lock" true
}

supervise() {
  exec 9>"$dir/lock"
  flock --nonblock 9 || exit 1
  echo "$$" >"$dir/pid"
  # Signals are for the command, which is in this process group; this shell stays to write down how it ended.
  trap : TERM INT HUP
  printf -- '--- %s on %s\n' "$(date '+%F %T')" "$(hostname)" >>"$dir/log"
  status=0
  "$@" >>"$dir/log" 2>&1 9>&- </dev/null || status=$?
  printf '%s %s\n' "$status" "$(date +%s.%N)" >"$dir/status.partial"
  mv "$dir/status.partial" "$dir/status"
  rm -f "$dir/secret"
}

case $verb in
  start)
    if alive; then
      echo "run $run is under way here" >&2
      exit 2
    fi
    rm -f "$dir/status" "$dir/pid"
    # The secret of this attempt, by which the processes of the run know each other.
    chmod 600 "$home/$run.secret"
    mv "$home/$run.secret" "$dir/secret"
    export STAGJAX_SECRET_FILE=$dir/secret
    cd "$home/source" 2>/dev/null || cd "$home"
    PATH=$home/venv/bin:$PATH setsid nohup bash "$home/worker.sh" supervise "$run" "$@" >/dev/null 2>&1 </dev/null &
    for ((tenths = 0; tenths < 100; tenths++)); do
      [[ -s $dir/pid ]] && exit 0
      sleep 0.1
    done
    echo "run $run did not start here" >&2
    exit 1
    ;;
  supervise)
    supervise "$@"
    ;;
  status)
    if [[ -s $dir/status ]]; then
      echo "stagjax-worker $(hostname) ended $(cat "$dir/status") $(tail -n 1 "$dir/log")"
    elif alive; then
      echo "stagjax-worker $(hostname) running"
    elif [[ -s $dir/pid ]]; then
      # Killed together with the shell that would have written it down, or the machine was started anew.
      echo "stagjax-worker $(hostname) ended 137 $(date +%s.%N)"
    else
      echo "stagjax-worker $(hostname) absent"
    fi
    ;;
  stop)
    if alive && [[ -s $dir/pid ]]; then
      group=$(cat "$dir/pid")
      kill -s "$1" -- "-$group" || true
      for ((tenths = 0; tenths < ${2%.*} * 10; tenths++)); do
        alive || break
        sleep 0.1
      done
      if alive; then
        kill -s KILL -- "-$group" || true
      fi
    fi
    rm -f "$dir/secret" "$home/$run.secret"
    ;;
  log)
    cat "$dir/log" 2>/dev/null || true
    ;;
  *)
    echo "unknown verb $verb: start, status, stop or log" >&2
    exit 2
    ;;
esac
