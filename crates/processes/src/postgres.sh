# Makes a cluster in the working directory, then becomes its server.
#   $1 directory of PostgreSQL   $2 superuser   $3… options of the server
native=$1 superuser=$2
shift 2
# The same rules for letters and their order on every machine, accents included. Hashing a password thousands of
# times for each connection would take longer than most tests.
"$native/bin/initdb" --pgdata=data --pwfile=password --username="$superuser" --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 \
    --set=scram_iterations=1 --no-sync --no-instructions || exit
rm password
exec "$native/bin/postgres" -D data "$@"
