"""The PostgreSQL that comes with regtune (extra `postgres`): a real server, run for one folder."""
