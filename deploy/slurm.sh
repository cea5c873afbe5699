#!/bin/bash
# A sweep on the nodes of a Slurm allocation: Ray on each of them, the coordinator on the first.
#
#     make .venv/.installed && .venv/bin/pip install --require-hashes -r requirements-ray.lock
#     sbatch --export=ALL,TEAM_HOST=mlflow.example.org deploy/slurm.sh sweeps/mnist.yaml
#
# The first line installs, once, in a folder that all nodes have; the second one, typed again, resumes the study.
# TEAM_HOST runs docker-compose.yml with deploy/cluster.compose.yaml, and TLS in front of MLflow (deploy/Caddyfile).
# Of its deploy/secrets, studies_password and tracking_sweep_password lie in ~/.regtune here, with mode 0600.
#SBATCH --job-name=regtune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --no-kill
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@180
set -euo pipefail

file=${1:?usage: sbatch --export=ALL,TEAM_HOST=NAME deploy/slurm.sh FILE}
database=postgresql+psycopg://studies@${TEAM_HOST:?expected the machine that runs docker-compose.yml}:5432/studies
export OPTUNA_STORAGE=${OPTUNA_STORAGE:-$database}
export OPTUNA_STORAGE_PASSWORD_FILE=~/.regtune/studies_password
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-https://$TEAM_HOST}
export MLFLOW_TRACKING_USERNAME=sweep
export MLFLOW_TRACKING_PASSWORD_FILE=~/.regtune/tracking_sweep_password
export PATH=$SLURM_SUBMIT_DIR/.venv/bin:$PATH

# Other users of these machines reach Ray's ports: only this job's own token lets in. It is on no command line.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

HEAD=${HEAD:-$(hostname -I | cut -d " " -f 1):6379}   # this script runs on the first node, as task 0 does
READY='until ray health-check --address="$HEAD" 2> /dev/null; do sleep 2; done'
START='
  as="ray start --block --num-cpus=$SLURM_CPUS_ON_NODE"
  if [ "$SLURM_PROCID" = 0 ]; then
    exec $as --head --node-ip-address="${HEAD%:*}" --port="${HEAD##*:}" --include-dashboard=false
  fi
  eval "$READY"
  exec $as --address="$HEAD"'
export HEAD READY

cd "$SLURM_SUBMIT_DIR"
# A node that is lost takes no other with it, and one that comes late takes work once it has joined.
srun --no-kill --kill-on-bad-exit=0 bash -c "$START" &
timeout 300 bash -c "$READY"
# In the place of this script, so that the signal before the time limit stops it calmly. Slurm ends Ray after it.
exec regtune sweep "$file" --on ray --address "$HEAD"
