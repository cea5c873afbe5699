#!/bin/bash
# Make the databases `studies` (Optuna's) and `mlflow`, each with an owner of the same name who can connect to nothing else.
# Postgres' image runs this once, as its administrator, while the data folder is empty and nobody else can connect.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
-- a statement that fails or is slow is logged as it was written, and these have passwords in them
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
\set studies_password `cat /run/secrets/studies_password`
\set mlflow_password `cat /run/secrets/mlflow_password`

CREATE ROLE studies LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'studies_password';
CREATE ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'mlflow_password';
CREATE DATABASE studies OWNER studies;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE ALL ON DATABASE studies, mlflow, postgres, template1 FROM PUBLIC;
SQL
